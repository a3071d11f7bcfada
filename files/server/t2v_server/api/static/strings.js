/** Every sentence of the page, in each of its languages. */

const STRINGS = {
  en: {
    otherLanguage: "中文",
    skip: "Skip to the prompt",
    docs: "API",
    model: "Model: {model}",
    newVideo: "New video",
    prompt: "Prompt",
    promptHint: "A dog running along the beach at sunset, waves, cinematic light",
    negativePrompt: "Negative prompt",
    negativePromptHint: "What should not be seen",
    size: "Size",
    landscape: "Landscape",
    portrait: "Portrait",
    square: "Square",
    small: "Small",
    custom: "Custom",
    customHint: "your own",
    width: "Width",
    height: "Height",
    sizeHint: "Multiples of {multiple} up to {side}, together at most {pixels} pixels.",
    frames: "Frames",
    seconds: "{seconds} s at {fps} fps",
    more: "More settings",
    steps: "Steps",
    guidance: "Guidance scale",
    fps: "Frames per second",
    flowShift: "Flow shift",
    seed: "Seed",
    seedHint: "random",
    dice: "Draw a seed",
    make: "Make the video",
    sending: "Sending …",
    videos: "Videos",
    video: "Video",
    empty: "Nothing here yet. Describe a scene, and its video appears here.",
    older: "Show older videos",
    play: "Play: {prompt}",
    cancel: "Cancel",
    cancelling: "Cancelling …",
    download: "Download",
    again: "Use these parameters again",
    delete: "Delete",
    deleteTitle: "Delete this video?",
    deleteText: "Its file is removed from the server. This cannot be undone.",
    keep: "Keep it",
    close: "Close",
    queued: "Waiting in the queue",
    started: "Starting",
    encoding_prompt: "Reading the prompt",
    denoising: "Denoising, step {done} of {total}",
    decoding: "Decoding, {done} of {total}",
    writing: "Writing the file",
    left: "about {time} left",
    failed: "Failed",
    cancelledTitle: "Cancelled",
    factSize: "Size",
    factLength: "Length",
    factLengthValue: "{seconds} s, {frames} frames at {fps} fps",
    factTook: "Took",
    factFile: "File",
    factMade: "Made",
    factExpires: "Kept until",
    shortSeconds: "{seconds} s",
    accepted: "Accepted: the video waits in the queue.",
    announceProgress: "{percent} percent",
    announceDone: "The video is ready: {prompt}",
    announceFailed: "No video: {reason}",
    announceDeleted: "The video was deleted.",
    announceFilled: "The parameters are in the form.",
    tokenTitle: "Access token",
    token: "Access token",
    tokenNeeded: "This server asks who you are. The token is kept until this tab is closed.",
    tokenRefused: "This token was not accepted.",
    tokenExpired: "This token has expired.",
    tokenUse: "Continue",
    forgetToken: "Forget token",
    unreachable: "The server cannot be reached. This page goes on by itself as soon as it is back.",
    restarting: "The server is starting. This page goes on by itself as soon as it is ready.",
    required: "Describe what the video shows.",
    tooLong: "{length} characters are too long: at most {most}.",
    sizeStep: "Use a multiple of {multiple} from {multiple} to {most}.",
    tooManyPixels: "{width} × {height} is too large: at most {most} pixels together.",
    framesStep: "Use {step} × n + 1 frames, from 1 to {most}: {below} or {above}.",
    wholeRange: "Use a whole number from {least} to {most}.",
    range: "Use a number from {least} to {most}.",
    retryIn: "{sentence} Try again in {seconds} s.",
    unknownProblem: "The server answered with an error ({status}).",
    playProblem: "The video cannot be played. It may have been removed.",
    // Where the server's own sentence does not fit, or there is none.
    errors: {
      unreachable: "The server cannot be reached.",
      cancelled: "The job was cancelled.",
    },
  },
  zh: {
    otherLanguage: "English",
    skip: "跳到提示词",
    docs: "API",
    model: "模型：{model}",
    newVideo: "新视频",
    prompt: "提示词",
    promptHint: "日落时分，一只狗沿着海滩奔跑，海浪，电影感光线",
    negativePrompt: "负面提示词",
    negativePromptHint: "不希望出现的内容",
    size: "尺寸",
    landscape: "横屏",
    portrait: "竖屏",
    square: "方形",
    small: "小尺寸",
    custom: "自定义",
    customHint: "自行填写",
    width: "宽度",
    height: "高度",
    sizeHint: "{multiple} 的倍数，单边最大 {side}，总像素最多 {pixels}。",
    frames: "帧数",
    seconds: "{seconds} 秒，每秒 {fps} 帧",
    more: "更多设置",
    steps: "步数",
    guidance: "引导系数",
    fps: "帧率",
    flowShift: "流偏移",
    seed: "随机种子",
    seedHint: "随机",
    dice: "随机抽取种子",
    make: "生成视频",
    sending: "正在提交…",
    videos: "视频",
    video: "视频",
    empty: "这里还没有视频。描述一个场景，生成的视频会出现在这里。",
    older: "显示更早的视频",
    play: "播放：{prompt}",
    cancel: "取消",
    cancelling: "正在取消…",
    download: "下载",
    again: "再次使用这些参数",
    delete: "删除",
    deleteTitle: "删除这个视频？",
    deleteText: "文件将从服务器上移除，无法恢复。",
    keep: "保留",
    close: "关闭",
    queued: "正在排队",
    started: "正在开始",
    encoding_prompt: "正在理解提示词",
    denoising: "去噪，第 {done} 步，共 {total} 步",
    decoding: "解码，{done} / {total}",
    writing: "正在写入文件",
    left: "大约还需 {time}",
    failed: "生成失败",
    cancelledTitle: "已取消",
    factSize: "尺寸",
    factLength: "时长",
    factLengthValue: "{seconds} 秒，{frames} 帧，每秒 {fps} 帧",
    factTook: "用时",
    factFile: "文件",
    factMade: "完成于",
    factExpires: "保留至",
    shortSeconds: "{seconds} 秒",
    accepted: "已提交，正在排队。",
    announceProgress: "百分之 {percent}",
    announceDone: "视频已完成：{prompt}",
    announceFailed: "没有生成视频：{reason}",
    announceDeleted: "视频已删除。",
    announceFilled: "参数已填入表单。",
    tokenTitle: "访问令牌",
    token: "访问令牌",
    tokenNeeded: "此服务器需要验证身份。令牌只保留到关闭此标签页为止。",
    tokenRefused: "该令牌未被接受。",
    tokenExpired: "该令牌已过期。",
    tokenUse: "继续",
    forgetToken: "清除令牌",
    unreachable: "无法连接服务器。恢复后本页会自动继续。",
    restarting: "服务器正在启动。就绪后本页会自动继续。",
    required: "请描述视频的内容。",
    tooLong: "共 {length} 个字符，太长：最多 {most} 个。",
    sizeStep: "请填写 {multiple} 的倍数，从 {multiple} 到 {most}。",
    tooManyPixels: "{width} × {height} 太大：总像素最多 {most}。",
    framesStep: "帧数应为 {step} × n + 1，从 1 到 {most}：例如 {below} 或 {above}。",
    wholeRange: "请填写 {least} 到 {most} 的整数。",
    range: "请填写 {least} 到 {most} 的数。",
    retryIn: "{sentence}请在 {seconds} 秒后重试。",
    unknownProblem: "服务器返回错误（{status}）。",
    playProblem: "视频无法播放，可能已被移除。",
    // By the API's codes. English shows the server's own sentences, which say more.
    errors: {
      unreachable: "无法连接服务器。",
      missing_prompt: "请描述视频的内容。",
      prompt_too_long: "提示词太长。",
      invalid_parameter: "该参数无效。",
      unknown_parameter: "服务器不支持该参数。",
      invalid_json: "请求格式有误。",
      unsupported_media_type: "请求格式有误。",
      method_not_allowed: "不支持该操作。",
      missing_token: "需要访问令牌。",
      invalid_token: "该令牌未被接受。",
      expired_token: "该令牌已过期。",
      insufficient_scope: "此令牌没有执行该操作的权限。",
      rate_limited: "请求过于频繁。",
      client_limit: "您未完成的任务已达上限。",
      queue_full: "队列已满。",
      too_many_streams: "连接过多。",
      model_loading: "模型正在加载。",
      model_failed: "模型加载失败。",
      shutting_down: "服务器正在重启。",
      store_unavailable: "服务器暂时无法读写任务数据。",
      insufficient_storage: "服务器磁盘空间不足。",
      idempotency_conflict: "该请求与之前的请求冲突。",
      not_found: "该视频不存在或已被移除。",
      not_completed: "该视频尚未完成。",
      generation_failed: "生成过程中出错。",
      out_of_memory: "内存不足，请尝试更小的尺寸或更少的帧数。",
      encoding_failed: "视频编码失败。",
      storage_failed: "视频无法写入磁盘。",
      engine_lost: "生成引擎多次中断，任务已放弃。",
      cancelled: "任务已取消。",
    },
  },
};

const CHOICE = "t2v.language";
let language = remembered() ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

/** Storage may be refused by the browser; then the choice lasts as long as the page. */
function remembered() {
  try {
    const choice = localStorage.getItem(CHOICE);
    return choice in STRINGS ? choice : null;
  } catch {
    return null;
  }
}

export function toggleLanguage() {
  language = language === "zh" ? "en" : "zh";
  try {
    localStorage.setItem(CHOICE, language);
  } catch {
    // Not remembered, that is all.
  }
  translatePage();
}

/** The sentence `key`, with `{name}` replaced by `values.name`. */
export function t(key, values = {}) {
  return STRINGS[language][key].replace(/\{(\w+)\}/g, (whole, name) =>
    typeof values[name] === "number" ? number(values[name]) : (values[name] ?? whole));
}

/** What an error {code, message, status?, retryAfter?} says in the page's language. */
export function errorText({ code, message, status, retryAfter }) {
  const known = STRINGS[language].errors[code] ?? message;
  const sentence = known ? ended(known) : t("unknownProblem", { status: String(status ?? code) });
  return retryAfter ? t("retryIn", { sentence, seconds: retryAfter }) : sentence;
}

/** A server's sentence as a sentence: with a capital and a full stop. */
function ended(text) {
  const sentence = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?。！？…]$/.test(sentence) ? sentence : `${sentence}.`;
}

export function number(value, digits = 2) {
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(value);
}

/** 42 as "42%". */
export function percent(value) {
  return new Intl.NumberFormat(language, { style: "percent" }).format(value / 100);
}

/** A file's size as "1.2 MB". */
export function bytes(count) {
  const [unit, size] = count < 1e6 ? ["kilobyte", count / 1e3] : ["megabyte", count / 1e6];
  return new Intl.NumberFormat(language, { style: "unit", unit, maximumFractionDigits: 1 })
    .format(size);
}

/** Seconds as "8 s" or "2 min 5 s". */
export function duration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  const unit = (value, name) =>
    new Intl.NumberFormat(language, { style: "unit", unit: name, unitDisplay: "short" })
      .format(value);
  if (whole < 60) return unit(whole, "second");
  if (whole < 3600) return `${unit(Math.floor(whole / 60), "minute")} ${unit(whole % 60, "second")}`;
  return `${unit(Math.floor(whole / 3600), "hour")} ${unit(Math.floor(whole / 60) % 60, "minute")}`;
}

/** A Unix time in seconds as "5 minutes ago". */
export function ago(time) {
  const passed = Math.max(0, Date.now() / 1000 - time);
  const format = new Intl.RelativeTimeFormat(language, { numeric: "auto" });
  if (passed < 60) return format.format(0, "second");
  if (passed < 3600) return format.format(-Math.floor(passed / 60), "minute");
  if (passed < 86400) return format.format(-Math.floor(passed / 3600), "hour");
  return format.format(-Math.floor(passed / 86400), "day");
}

export function date(time) {
  return new Intl.DateTimeFormat(language, { dateStyle: "long", timeStyle: "short" })
    .format(new Date(time * 1000));
}

/** Put the page's own text in the current language. */
export function translatePage() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-t]")) {
    element.textContent = t(element.dataset.t);
  }
  for (const [data, attribute] of [
    ["tAriaLabel", "aria-label"], ["tTitle", "title"], ["tPlaceholder", "placeholder"],
  ]) {
    const name = `data-${data.replace(/[A-Z]/g, (capital) => `-${capital.toLowerCase()}`)}`;
    for (const element of document.querySelectorAll(`[${name}]`)) {
      element.setAttribute(attribute, t(element.dataset[data]));
    }
  }
  // The button names the other language in that language, for those who read only that one.
  document.getElementById("language").lang = language === "zh" ? "en" : "zh-CN";
}
