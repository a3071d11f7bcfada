/** The page's start: the model, the form, the gallery, and what the server asks for meanwhile. */

import { delay, describeModel, hasToken, hooks, setToken } from "./api.js";
import { $, announce } from "./dom.js";
import { setUpForm, translateForm, useAgain } from "./form.js";
import { addVideo, refreshGallery, setUpGallery, translateGallery } from "./gallery.js";
import { errorText, t, toggleLanguage, translatePage } from "./strings.js";
import { passing } from "./watch.js";

let model = null;
let modelError = null;

// ---- The connection's banner

let away = null;

function showConnection() {
  let text = "";
  if (away) {
    const starting = away.code === "model_loading" || away.code === "shutting_down";
    const said = away.status === 503 && away.code !== "unknown";
    if (starting) text = t("restarting");
    else if (said) text = errorText({ code: away.code, message: away.message, status: 503 });
    else text = t("unreachable");
  }
  if ($("connection-text").textContent !== text) $("connection-text").textContent = text;
  $("connection").hidden = !away;
}

hooks.connection = (error) => {
  const back = away !== null && error === null;
  away = error;
  showConnection();
  if (back) refreshGallery();
};

// ---- The token's form

let asking = null; // {promise, resolve, why}

function showTokenForm() {
  $("token-form").hidden = !asking;
  $("token-why").textContent = asking ? t(asking.why) : "";
  $("forget").hidden = !hasToken() || asking !== null;
}

/** One question for all the requests that were refused at the same time. */
hooks.askForToken = (refused, code) => {
  if (!asking) {
    let resolve;
    const promise = new Promise((settle) => { resolve = settle; });
    let why = "tokenNeeded";
    if (refused) why = code === "expired_token" ? "tokenExpired" : "tokenRefused";
    asking = { promise, resolve, why };
    for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
    $("token").value = "";
    showTokenForm();
    $("token").focus();
    announce(t(asking.why));
  }
  return asking.promise;
};

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const value = $("token").value.trim();
  if (!value || !asking) return;
  setToken(value);
  const { resolve } = asking;
  asking = null;
  $("token").value = "";
  showTokenForm();
  $("prompt").focus({ preventScroll: true });
  resolve();
});

$("forget").addEventListener("click", () => {
  setToken("");
  location.reload(); // nothing that the token opened stays on the page
});

// ---- The language

function showModel() {
  $("model").hidden = !model;
  $("model").textContent = model ? t("model", { model: model.id }) : "";
  if (model) $("model").title = model.id;
  if (modelError) $("form-error").textContent = errorText(modelError);
}

$("language").addEventListener("click", () => {
  toggleLanguage();
  translateForm();
  translateGallery();
  showModel();
  showConnection();
  showTokenForm();
});

// ---- The start

translatePage();
showTokenForm();
setUpGallery(useAgain);
refreshGallery();
while (!model) {
  try {
    model = await describeModel();
    modelError = null;
    $("form-error").textContent = "";
    setUpForm(model, addVideo);
  } catch (error) {
    modelError = error;
    if (!passing(error)) break;
    showModel();
    await delay(Math.max(error.retryAfter ?? 0, 5) * 1000);
  }
}
showModel();
