/** Small helpers around the document. Data becomes text and properties, never markup. */

export const $ = (id) => document.getElementById(id);

/** An element with properties (`aria-…`, `class` and `datetime` as attributes) and children. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** One of the symbols of index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

export function iconButton(name, label, onclick) {
  return el("button", {
    type: "button", className: "icon-button", title: label, "aria-label": label, onclick,
  }, icon(name));
}

/** Say something to those who listen to the page. */
export function announce(sentence) {
  $("announcer").textContent = sentence;
}
