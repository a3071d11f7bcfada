/** The gallery: a card for each video, from the queue to the player. */

import { cancelVideo, contentPath, deleteVideo, hasToken, listVideos, media } from "./api.js";
import { $, announce, el, icon, iconButton } from "./dom.js";
import { ago, bytes, date, duration, errorText, number, percent, t } from "./strings.js";
import { ended, watch } from "./watch.js";

const PAGE = 20;
const REFRESH_MS = 30_000;
const LEFT_AFTER_MS = 2000;

const cards = new Map(); // by the video's id
let useAgain = () => {};
let more = false;
let loaded = false;
let problem = null; // a function that says it in the current language
let refreshing = false;

/** `again` gets the video whose parameters are wanted once more. */
export function setUpGallery(again) {
  useAgain = again;
  $("cards").setAttribute("aria-busy", "true");
  $("older").addEventListener("click", showOlder);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) refreshGallery();
  });
  setInterval(() => {
    if (!document.hidden) refreshGallery();
  }, REFRESH_MS);
  setUpDialogs();
}

/** Bring the newest videos up to date: others may have been asked for or deleted elsewhere. */
export async function refreshGallery() {
  if (refreshing) return;
  refreshing = true;
  const before = new Set(cards.keys());
  try {
    const { data, has_more: hasMore } = await listVideos({ limit: PAGE });
    const listed = new Set(data.map(({ id }) => id));
    const oldest = hasMore ? data.at(-1)?.created_at ?? Infinity : -Infinity;
    for (const id of before) {
      const card = cards.get(id);
      if (card && !listed.has(id) && card.video.created_at > oldest) remove(card);
    }
    for (const video of data) put(video);
    if (!loaded || !hasMore) more = hasMore;
    loaded = true;
    complain(null);
  } catch (error) {
    complain(() => errorText(error));
  } finally {
    refreshing = false;
    $("cards").removeAttribute("aria-busy");
    for (const card of cards.values()) card.showTime();
    reflect();
  }
}

/** A video that was just accepted. */
export function addVideo(video) {
  const card = put(video, true);
  // Beside the form it is in sight already; below it, on a phone, it is not.
  const { top } = card.element.getBoundingClientRect();
  if (top > innerHeight - 80 || top < 0) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    $("gallery-title").scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
  }
  reflect();
}

export function translateGallery() {
  for (const card of cards.values()) card.draw();
  complain(problem);
  if (shown) showFacts();
}

async function showOlder() {
  const button = $("older");
  if (button.getAttribute("aria-disabled")) return;
  button.setAttribute("aria-disabled", "true");
  try {
    for (;;) {
      const last = [...cards.values()].find(({ element }) => !element.nextElementSibling);
      try {
        const page = await listVideos({ limit: PAGE, after: last?.video.id });
        const first = page.data.map((video) => put(video))[0];
        more = page.has_more;
        if (!more) first?.element.querySelector("button, a")?.focus();
        break;
      } catch (error) {
        // The video to go on after was removed meanwhile: go on after the one before it.
        if (!last || !(error.status === 404 || error.param === "after")) throw error;
        remove(last);
      }
    }
    complain(null);
  } catch (error) {
    complain(() => errorText(error));
  } finally {
    button.removeAttribute("aria-disabled");
    reflect();
  }
}

function complain(sentence) {
  problem = sentence;
  $("gallery-error").textContent = sentence ? sentence() : "";
}

function reflect() {
  $("empty").hidden = !loaded || cards.size > 0;
  $("older").hidden = !more;
  const running = [...cards.values()].find(({ video }) => video.status === "in_progress");
  document.title = running ? `${percent(running.video.progress)} · sanchuang.t2v` : "sanchuang.t2v";
}

/** The video's card, brought up to date or made, in its place: the newest first. */
function put(video, isNew = false) {
  const known = cards.get(video.id);
  if (known) {
    known.update(video);
    return known;
  }
  const card = new Card(video);
  const next = [...$("cards").children].find((element) => {
    const other = cards.get(element.dataset.id).video.created_at;
    return isNew ? other <= video.created_at : other < video.created_at;
  });
  cards.set(video.id, card);
  $("cards").insertBefore(card.element, next ?? null);
  return card;
}

function remove(card) {
  const focused = card.element.contains(document.activeElement);
  cards.delete(card.video.id);
  card.stop();
  card.element.remove();
  if (shown === card) $("player").close();
  if (focused) $("gallery-title").focus();
  reflect();
}

const kindOf = (video) => (ended(video) ? video.status : "active");

class Card {
  constructor(video) {
    this.video = video;
    this.element = el("li", { className: "card" });
    this.element.dataset.id = video.id;
    this.controller = new AbortController();
    this.samples = null; // the first {time, progress} seen, for the time that is left
    this.announced = 0;
    this.error = null; // of the card's own buttons
    this.release = () => {};
    this.draw();
    if (!ended(video)) this.follow();
  }

  follow() {
    watch(this.video.id, {
      update: (video) => this.update(video),
      gone: (error) => {
        if (error.status === 404) remove(this);
        else this.complain(() => errorText(error));
      },
      signal: this.controller.signal,
    });
  }

  stop() {
    this.controller.abort();
    this.release();
  }

  update(video) {
    if (ended(this.video)) return; // nothing changes any more; a late answer may be older
    const before = this.video;
    this.video = video;
    this.sample();
    if (kindOf(before) !== kindOf(video)) {
      this.error = null;
      this.draw();
    } else {
      this.show();
    }
    this.tell(before);
    reflect();
  }

  sample() {
    const { status, progress } = this.video;
    if (status !== "in_progress" || this.video.cancel_requested) this.samples = null;
    else if (!this.samples && progress > 0) this.samples = { time: performance.now(), progress };
    else if (this.samples && progress < this.samples.progress) this.samples = null; // begun anew
  }

  /** The seconds left, or null while that would be a guess. */
  left() {
    if (!this.samples) return null;
    const passed = performance.now() - this.samples.time;
    const gained = this.video.progress - this.samples.progress;
    if (passed < LEFT_AFTER_MS || gained < 2 || this.video.progress >= 100) return null;
    return (passed / gained) * (100 - this.video.progress) / 1000;
  }

  tell(before) {
    const { status, prompt, progress } = this.video;
    if (status === "completed") announce(t("announceDone", { prompt }));
    else if (status === "failed") announce(t("announceFailed", { reason: this.reason() }));
    else if (status === "in_progress") {
      const quarter = Math.floor(progress / 25) * 25;
      if (before.status === status && quarter > this.announced) {
        announce(t("announceProgress", { percent: quarter }));
      }
      this.announced = quarter;
    }
  }

  cancelled() {
    return this.video.error?.code === "cancelled";
  }

  reason() {
    return this.cancelled() ? t("cancelledTitle")
      : errorText(this.video.error ?? { code: "unknown", status: this.video.status });
  }

  complain(sentence) {
    this.error = sentence;
    this.parts.error.textContent = sentence ? sentence() : "";
  }

  // ---- Drawing

  /** Build the card anew: at first, when its kind changes, in another language. */
  draw() {
    const { video } = this;
    const focused = this.element.contains(document.activeElement);
    this.release();
    this.release = () => {};
    this.element.dataset.status = this.cancelled() ? "cancelled" : video.status;
    this.parts = {
      error: el("p", { className: "error card-error", role: "alert" }),
      time: el("time", { datetime: "" }),
    };
    const kind = kindOf(video);
    const frame = kind === "active" ? this.activeFrame()
      : kind === "failed" ? this.failedFrame() : this.doneFrame();
    const details = [`${video.width} × ${video.height}`];
    if (video.seconds !== null) details.push(t("shortSeconds", { seconds: Number(video.seconds) }));
    const text = el("div", { className: "card-text" },
      el("p", { className: "card-prompt", title: video.prompt, dir: "auto" }, video.prompt),
      el("p", { className: "card-meta" }, `${details.join(" · ")} · `, this.parts.time),
      this.parts.error,
      el("div", { className: "card-actions" }, ...this.buttons(kind)));
    this.element.replaceChildren(frame, text);
    this.show();
    if (focused) this.element.querySelector("button, a")?.focus();
  }

  /** Bring the texts of the card up to date; its elements stay, and so does the focus. */
  show() {
    const { video, parts } = this;
    this.element.dataset.status = this.cancelled() ? "cancelled" : video.status;
    this.showTime();
    parts.error.textContent = this.error ? this.error() : "";
    if (kindOf(video) !== "active") return;
    const waiting = video.status === "queued";
    const stage = this.stage();
    const left = this.left();
    set(parts.percent, waiting ? "" : percent(video.progress));
    set(parts.stage, stage);
    set(parts.left, left === null ? "" : t("left", { time: duration(left) }));
    parts.bar.classList.toggle("waiting", waiting);
    parts.bar.setAttribute("aria-valuetext",
      waiting ? stage : `${percent(video.progress)}, ${stage}`);
    if (waiting) parts.bar.removeAttribute("aria-valuenow");
    else parts.bar.setAttribute("aria-valuenow", String(video.progress));
    parts.fill.style.transform = `scaleX(${waiting ? 0 : video.progress / 100})`;
    const cancelling = video.cancel_requested || this.cancelling;
    set(parts.cancel, t(cancelling ? "cancelling" : "cancel"));
    if (cancelling) parts.cancel.setAttribute("aria-disabled", "true");
    else parts.cancel.removeAttribute("aria-disabled");
  }

  showTime() {
    const { created_at: time } = this.video;
    this.parts.time.setAttribute("datetime", new Date(time * 1000).toISOString());
    this.parts.time.title = date(time);
    set(this.parts.time, ago(time));
  }

  stage() {
    const { status, stage } = this.video;
    if (status === "queued") return t("queued");
    if (!stage) return t("started");
    const known = ["encoding_prompt", "denoising", "decoding", "writing"].includes(stage.name);
    return known ? t(stage.name, { done: stage.done, total: stage.total }) : stage.name;
  }

  activeFrame() {
    const { parts, video } = this;
    parts.percent = el("p", { className: "percent", "aria-hidden": "true" });
    parts.stage = el("p", { className: "stage" });
    parts.left = el("p", { className: "left" });
    parts.fill = el("span", { className: "bar-fill" });
    parts.bar = el("div", {
      className: "bar", role: "progressbar", "aria-label": video.prompt,
      "aria-valuemin": "0", "aria-valuemax": "100",
    }, parts.fill);
    return el("div", { className: "frame active" },
      parts.percent, parts.stage, parts.left, parts.bar);
  }

  failedFrame() {
    const cancelled = this.cancelled();
    return el("div", { className: "frame failed" },
      icon(cancelled ? "close" : "broken"),
      el("p", { className: "failed-title" }, t(cancelled ? "cancelledTitle" : "failed")),
      cancelled ? null : el("p", { className: "reason" }, this.reason()));
  }

  doneFrame() {
    const { video } = this;
    const image = el("img", {
      alt: "", loading: "lazy", decoding: "async", width: video.width, height: video.height,
    });
    image.addEventListener("error", () => image.classList.add("missing"));
    image.addEventListener("load", () => image.classList.remove("missing"));
    this.thumbnail(image);
    const label = t("play", { prompt: video.prompt });
    return el("button", {
      type: "button", className: "frame play", "aria-label": label, onclick: () => openPlayer(this),
    }, image, el("span", { className: "play-sign" }, icon("play")));
  }

  async thumbnail(image) {
    try {
      const { url, release } = await media(this.video.id, "thumbnail", this.controller.signal);
      if (this.controller.signal.aborted || image !== this.element.querySelector("img")) {
        release();
        return;
      }
      this.release = release;
      image.src = url;
    } catch {
      image.classList.add("missing");
    }
  }

  buttons(kind) {
    if (kind === "active") {
      this.parts.cancel = el("button", {
        type: "button", className: "secondary cancel", onclick: () => this.cancel(),
      });
      return [this.parts.cancel];
    }
    const again = iconButton("again", t("again"), () => useAgain(this.video));
    again.classList.add("again");
    const rest = iconButton("delete", t("delete"), () => askToDelete(this));
    rest.classList.add("delete");
    return kind === "completed" ? [downloadLink(this.video), again, rest] : [again, rest];
  }

  async cancel() {
    if (this.cancelling || this.video.cancel_requested) return;
    this.cancelling = true;
    this.error = null;
    this.show();
    try {
      this.update(await cancelVideo(this.video.id));
    } catch (error) {
      if (error.status === 404) remove(this);
      else if (!ended(this.video)) this.complain(() => errorText(error));
    } finally {
      this.cancelling = false;
      if (!ended(this.video)) this.show();
    }
  }

  async delete() {
    try {
      await deleteVideo(this.video.id);
      remove(this);
      announce(t("announceDeleted"));
      $("gallery-title").focus();
    } catch (error) {
      this.complain(() => errorText(error));
    }
  }
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// ---- Download

const fileName = (video) => video.file_name ?? `${video.id}.mp4`;

function downloadLink(video, withText = false) {
  const link = el("a", {
    className: withText ? "button secondary download" : "icon-button download",
    href: contentPath(video.id), download: fileName(video), title: t("download"),
  }, icon("download"));
  if (withText) link.append(t("download"));
  else link.setAttribute("aria-label", t("download"));
  // A link sends no token, so with one the file is fetched first and then saved.
  link.addEventListener("click", async (event) => {
    if (!hasToken()) return;
    event.preventDefault();
    if (link.getAttribute("aria-disabled")) return;
    link.setAttribute("aria-disabled", "true");
    try {
      const { url, release } = await media(video.id, "video");
      el("a", { href: url, download: fileName(video) }).click();
      setTimeout(release, 60_000);
    } catch (error) {
      cards.get(video.id)?.complain(() => errorText(error));
    } finally {
      link.removeAttribute("aria-disabled");
    }
  });
  return link;
}

// ---- The dialogs

let shown = null; // the card in the player
let closePlayer = () => {};
let doomed = null; // the card that the question is about

function setUpDialogs() {
  const [player, confirm, screen] = [$("player"), $("confirm"), $("player-video")];
  $("player-close").addEventListener("click", () => player.close());
  player.addEventListener("close", () => {
    closePlayer();
    shown = null;
    screen.pause();
    screen.removeAttribute("src");
    screen.load();
    $("player-actions").replaceChildren();
  });
  screen.addEventListener("error", () => {
    if (shown && screen.getAttribute("src")) $("player-error").textContent = t("playProblem");
  });
  confirm.addEventListener("close", () => {
    const card = doomed;
    doomed = null;
    if (confirm.returnValue === "yes" && card) card.delete();
  });
  for (const dialog of [player, confirm]) {
    dialog.addEventListener("click", (event) => {
      if (event.target !== dialog) return;
      const { left, right, top, bottom } = dialog.getBoundingClientRect();
      const { clientX: x, clientY: y } = event;
      if (x < left || x > right || y < top || y > bottom) dialog.close();
    });
  }
}

async function openPlayer(card) {
  shown = card;
  const { video } = card;
  const screen = $("player-video");
  const opened = new AbortController();
  let release = () => {};
  closePlayer = () => {
    opened.abort();
    release();
  };
  screen.style.aspectRatio = `${video.width} / ${video.height}`;
  screen.setAttribute("aria-label", video.prompt);
  $("player-error").textContent = "";
  showFacts();
  $("player").showModal();
  $("player").scrollTop = 0;
  try {
    const content = await media(video.id, "video", opened.signal);
    if (shown !== card) {
      content.release();
      return;
    }
    release = content.release;
    screen.src = content.url;
    await screen.play().catch(() => {}); // the browser may want a click first
  } catch (error) {
    if (shown === card) $("player-error").textContent = errorText(error);
  }
}

function showFacts() {
  const { video } = shown;
  const facts = [
    [t("factSize"), `${video.width} × ${video.height}`],
    [t("factLength"), t("factLengthValue", {
      seconds: Number(video.seconds), frames: video.num_frames, fps: video.fps,
    })],
    [t("steps"), said(video.num_inference_steps)],
    [t("guidance"), said(video.guidance_scale)],
    [t("flowShift"), said(video.flow_shift)],
    [t("seed"), video.seed === null ? null : String(video.seed)],
    [t("negativePrompt"), video.negative_prompt || null],
    [t("factTook"), video.inference_time_s === null ? null : duration(video.inference_time_s)],
    [t("factFile"), video.num_bytes === null ? null : bytes(video.num_bytes)],
    [t("factMade"), video.completed_at === null ? null : date(video.completed_at)],
    [t("factExpires"), video.expires_at === null ? null : date(video.expires_at)],
  ];
  $("player-prompt").textContent = video.prompt;
  $("player-facts").replaceChildren(...facts.filter(([, value]) => value !== null)
    .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  const card = shown;
  $("player-actions").replaceChildren(
    downloadLink(video, true),
    el("button", {
      type: "button", className: "secondary again",
      onclick: () => {
        $("player").close();
        useAgain(video);
      },
    }, icon("again"), t("again")),
    el("button", {
      type: "button", className: "secondary delete", onclick: () => askToDelete(card),
    }, icon("delete"), t("delete")),
  );
}

const said = (value) => (value === null ? null : number(value));

function askToDelete(card) {
  // Of a job that made nothing there is nothing to lose.
  if (card.video.status === "failed") {
    card.delete();
    return;
  }
  doomed = card;
  $("confirm-prompt").textContent = card.video.prompt;
  $("confirm").returnValue = "";
  $("confirm").showModal();
}
