/** Follow unfinished jobs: a few by their event streams, the others by asking. */

import { delay, events, getVideo } from "./api.js";

// A browser opens six connections to a host, over all of its tabs; most must stay free.
const MAX_STREAMS = 2;
const POLL_MS = 1500;
const HIDDEN_POLL_MS = 6000;
const NO_STREAM_MS = 30_000;

let streams = 0;
let noStreamBefore = 0;

/** Whether an error says nothing about the job: too many questions, a mishap of the server. */
export const passing = (error) => error.status === 429 || error.status >= 500;

export const ended = (video) => video.status === "completed" || video.status === "failed";

/**
 * Call `update` with each state of the job `id` until it has ended, or `gone` when there is no
 * such job any more. `signal` stops it.
 */
export async function watch(id, { update, gone, signal }) {
  try {
    while (!signal.aborted) {
      if (await stream(id, update, signal)) return;
      let pause = document.hidden ? HIDDEN_POLL_MS : POLL_MS;
      try {
        const video = await getVideo(id, signal);
        update(video);
        if (ended(video)) return;
      } catch (error) {
        if (!passing(error)) throw error;
        pause = Math.max((error.retryAfter ?? 0) * 1000, HIDDEN_POLL_MS);
      }
      await delay(pause, signal);
    }
  } catch (error) {
    if (!signal.aborted) gone(error);
  }
}

/** Whether the stream told the job's end. However it fails, asking is what remains. */
async function stream(id, update, signal) {
  if (streams >= MAX_STREAMS || document.hidden || Date.now() < noStreamBefore) return false;
  streams += 1;
  const visible = new AbortController();
  const stop = () => visible.abort();
  const hide = () => document.hidden && stop();
  signal.addEventListener("abort", stop, { once: true });
  document.addEventListener("visibilitychange", hide);
  let heard = false;
  try {
    for await (const video of events(id, visible.signal)) {
      heard = true;
      update(video);
      if (ended(video)) return true;
    }
  } catch {
    if (!heard && !visible.signal.aborted) noStreamBefore = Date.now() + NO_STREAM_MS;
  } finally {
    streams -= 1;
    signal.removeEventListener("abort", stop);
    document.removeEventListener("visibilitychange", hide);
  }
  return false;
}
