/** The videos API: a token when one is asked for, patience while the server is away. */

const TOKEN = "t2v.token";
const AWAY = new Set([502, 503, 504]);
// A 503 with one of these codes comes from a server that is there and says no.
const REFUSALS = new Set(["queue_full", "too_many_streams", "model_failed"]);
const SEND_PATIENCE_MS = 5 * 60_000;
const STREAM_SILENCE_MS = 45_000; // the server writes at least every 10 s

/** What the page does when the server asks for a token, goes away (an error) or is back (null). */
export const hooks = {
  askForToken: async (_refused, _code) => {},
  connection: (_error) => {},
};

export class ApiError extends Error {
  constructor({ status, code, message = "", param = null, retryAfter = null }) {
    super(message || code);
    Object.assign(this, { status, code, message, param, retryAfter });
  }
}

let token = stored();

function stored() {
  try {
    return sessionStorage.getItem(TOKEN) ?? "";
  } catch {
    return "";
  }
}

export function hasToken() {
  return token !== "";
}

export function setToken(value) {
  token = value;
  try {
    if (value) sessionStorage.setItem(TOKEN, value);
    else sessionStorage.removeItem(TOKEN);
  } catch {
    // Kept in this page alone.
  }
}

export function delay(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

function send(method, path, { headers = {}, ...options } = {}) {
  const authorization = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(path, { method, ...options, headers: { ...headers, ...authorization } });
}

/** The requests that wait for the server, each with its last error. */
const waiting = new Map();

function connection(attempted, error) {
  if (error) waiting.set(attempted, error);
  else waiting.delete(attempted);
  hooks.connection([...waiting.values()].at(-1) ?? null);
}

async function problem(response) {
  const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  const retryAfter = Number.isNaN(seconds) ? null : seconds;
  const body = await response.json().catch(() => null);
  const { code, message, param } = body?.error ?? {};
  return new ApiError({
    status: response.status, code: code ?? "unknown", message, param, retryAfter,
  });
}

/**
 * Send a request until the server has answered it; only what may be sent twice comes here.
 * Throws ApiError for an answer that is an error, or when `patience` ran out.
 */
async function request(method, path, { patience = Infinity, ...options } = {}) {
  const until = Date.now() + patience;
  const me = {};
  try {
    for (let attempt = 0; ; attempt += 1) {
      const sent = token;
      let error;
      try {
        const response = await send(method, path, options);
        if (response.ok) return response;
        error = await problem(response);
      } catch (failure) {
        if (options.signal?.aborted) throw failure;
        error = new ApiError({ status: 0, code: "unreachable" });
      }
      const away = error.status === 0 || (AWAY.has(error.status) && !REFUSALS.has(error.code));
      connection(me, away ? error : null);
      if (error.status === 401) {
        if (sent === token) await hooks.askForToken(sent !== "", error.code);
      } else if (!away || Date.now() > until) {
        throw error;
      } else {
        await delay(Math.min(500 * 2 ** attempt, 5000), options.signal);
      }
    }
  } finally {
    connection(me, null);
  }
}

/** JSON, with a seed beyond 2**53 kept exact, as a string of digits. */
function parse(text) {
  return JSON.parse(text, (key, value, context) =>
    key === "seed" && !Number.isSafeInteger(value) ? (context?.source ?? value) : value);
}

async function json(method, path, options) {
  return parse(await (await request(method, path, options)).text());
}

const path = (id, rest = "") => `v1/videos/${encodeURIComponent(id)}${rest}`;

export const contentPath = (id, variant = "video") =>
  path(id, variant === "video" ? "/content" : `/content?variant=${variant}`);

export async function describeModel() {
  return (await json("GET", "v1/models")).data[0];
}

/** The newest videos before the one called `after`: {data, has_more, last_id}. */
export function listVideos({ after, limit, signal }) {
  const query = new URLSearchParams({ limit, order: "desc", ...(after ? { after } : {}) });
  return json("GET", `v1/videos?${query}`, { signal });
}

export const getVideo = (id, signal) => json("GET", path(id), { signal });

/** Ask for a video; `parameters` are strings. Sent again, it is still one video. */
export function createVideo(parameters) {
  return json("POST", "v1/videos", {
    // A form rather than JSON: its numbers are text, so a large seed stays exact.
    body: new URLSearchParams(parameters),
    headers: { "Idempotency-Key": randomKey() },
    patience: SEND_PATIENCE_MS,
  });
}

export const cancelVideo = (id) =>
  json("POST", path(id, "/cancel"), { patience: SEND_PATIENCE_MS });

/** Delete a video; one that is gone already is as good. */
export async function deleteVideo(id) {
  try {
    await request("DELETE", path(id), { patience: SEND_PATIENCE_MS });
  } catch (error) {
    if (error.status !== 404) throw error;
  }
}

/** Not crypto.randomUUID: browsers have that on https and localhost only. */
function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * A URL of a video's content for an element's src, and what gives it back. An element sends no
 * Authorization header, so with a token the content is fetched whole.
 */
export async function media(id, variant, signal) {
  if (!hasToken()) return { url: contentPath(id, variant), release: () => {} };
  const blob = await (await request("GET", contentPath(id, variant), { signal })).blob();
  const url = URL.createObjectURL(blob);
  return { url, release: () => URL.revokeObjectURL(url) };
}

/** The video objects of a job's event stream; ends with the stream or with the server's silence. */
export async function* events(id, signal) {
  const connection = new AbortController();
  const stop = () => connection.abort();
  signal.addEventListener("abort", stop, { once: true });
  let timer = setTimeout(stop, STREAM_SILENCE_MS);
  try {
    const response = await send("GET", path(id, "/events"), {
      headers: { Accept: "text/event-stream" }, cache: "no-store", signal: connection.signal,
    });
    const type = response.headers.get("Content-Type") ?? "";
    if (!response.ok || !type.startsWith("text/event-stream")) throw await problem(response);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(stop, STREAM_SILENCE_MS);
      const parts = (text + value).split(/\r?\n\r?\n/);
      text = parts.pop();
      for (const part of parts) {
        const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trimStart()).join("\n");
        if (data) yield parse(data);
      }
    }
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
    stop();
  }
}
