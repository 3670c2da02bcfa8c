// Every word of the page, in English and Chinese, and putting them on it. A node remembers which word it shows
// (data-word, data-word-label, data-word-alt), so that a change of language touches nothing that was typed.

const WORDS = {
  en: {
    "title": "Rating · Polyphony", "other.language": "中文", "jump": "Go to the content", "views": "Views",
    "view.rate": "Rate", "view.admin": "Overview", "pause": "Pause", "keys": "Keys", "logout": "Log out",
    "retry": "Try now", "loading": "Loading …", "close": "Close", "cancel": "Cancel", "actions": "Your judgement",
    "said": "{text}",
    "progress": "Progress", "progress.text": "{judged} judged · {left} left",
    "trouble.kept": "The server cannot be reached. Your judgement is kept in this tab and is sent again by itself.",
    "trouble": "The server cannot be reached. Trying again by itself.",
    "unreachable": "The server cannot be reached. Nothing was done: try again.",
    "trouble.slow": "The server asks for a short break. It goes on by itself.",

    "login.title": "Which answer is better?", "login": "Log in", "login.label": "Invitation",
    "login.about": "People who look, listen and judge teach this model what a good answer is. Open the address that you were sent, or put the invitation in here.",
    "login.empty": "Put in the invitation that you were sent.", "login.done": "Welcome, {name}.",
    "login.expired": "Your session has ended. Log in again: what you typed is still here.", "logged.out": "You are logged out.",
    "who": "{name}",

    "prompt": "Prompt", "role.user": "User", "role.system": "System", "role.assistant": "Assistant",
    "answer.n": "Answer {n}", "answer.text": "Text of answer {n}", "answer.empty": "(empty answer)",
    "pair.question": "Which answer is better?", "pair.hint": "Judge by the prompt and its media, not by length.",
    "pair.choose": "Answer {n} is better", "pair.tie": "Tie",
    "ranking.question": "Put the answers in order", "ranking.hint": "Best first. Drag by the handle, use the arrows, or press the numbers from best to worst. Drop one on another for a tie.",
    "ranking.rank": "Rank {rank}", "ranking.tied": "Rank {rank}, tied", "ranking.none": "Not ranked",
    "ranking.up": "Move answer {n} up", "ranking.down": "Move answer {n} down", "ranking.tie": "Tie answer {n} with the one before",
    "ranking.moved": "Answer {n}: rank {rank} of {of}.", "ranking.removed": "Answer {n} is not ranked.",
    "ranking.incomplete": "Rank every answer first: {missing} to go.", "ranking.clear": "Clear", "ranking.count": "{done} of {of} ranked",
    "rating.question": "Rate each answer", "rating.hint": "1 is poor, 5 is excellent.", "rating.point": "{value} of 5",
    "criterion.helpful": "Helpful", "criterion.grounded": "True to the media", "criterion.fluent": "Well put", "criterion.safe": "Safe",
    "rating.incomplete": "Rate every answer by at least one criterion: answer {n} has none yet.",
    "rating.open": "Still open: {missing}. Press Enter again to send it as it is.", "rating.count": "{done} of {of} rated",
    "submit": "Submit", "saving": "Saving …", "saved": "Saved. U takes it back.", "undo": "Undo",
    "undone": "Taken back. Here is the item again.", "undo.none": "There is nothing to take back.", "gone": "This item is not open any more: {text}",

    "skip": "Skip", "skip.title": "Skip this item", "skip.label": "Why? (optional)", "skip.confirm": "Skip it",
    "correct": "Correct", "correct.label": "What answer {n} should have said",
    "harmful": "Harmful", "harmful.on": "Answer {n} is flagged as harmful. F takes the flag back.", "harmful.off": "The flag is taken back.",
    "thumb.up": "Good", "thumb.down": "Bad", "thumb.is_up": "Answer {n} has a thumb up.", "thumb.is_down": "Answer {n} has a thumb down.", "thumb.gone": "The thumb of answer {n} is taken back.",
    "reward": "Reward", "reward.label": "Reward of answer {n}", "focus.first": "Choose an answer with ← → first, then press {key} again.",
    "reward.invalid": "The reward of answer {n} is not a number.",

    "picture.zoom": "Zoom picture {n}", "picture.alt": "Picture {n} of the prompt", "zoom.title": "Picture", "zoom.place": "{n} of {of}",
    "sound.play": "Play sound {n}", "sound.pause": "Pause sound {n}", "sound.seek": "Position in sound {n}",
    "sound": "Sound {n}", "video": "Video {n}",
    "media.failed": "This medium could not be loaded.", "media.again": "Load again",

    "paused.title": "Paused", "paused.about": "The clock stands still. Take your time.", "resume": "Go on", "resumed": "Going on.",
    "nothing.title": "Nothing to rate just now", "nothing.about": "Thank you. This page looks for new items by itself.",

    "keys.title": "Keys", "keys.pair": "choose answer 1 or 2", "keys.tie": "tie (in a ranking: tie the focused answer with the one before)",
    "keys.rank": "ranking: give that answer the next rank, or take it back", "keys.move": "ranking: move the focused answer",
    "keys.rate": "rating: set the focused criterion", "keys.focus": "go from answer to answer", "keys.submit": "submit",
    "keys.skip": "skip", "keys.undo": "take back the last judgement", "keys.correct": "correct the focused answer",
    "keys.harmful": "flag the focused answer as harmful", "keys.reward": "give the focused answer a reward (experts)",
    "keys.thumb": "give the focused answer a thumb up or down",
    "keys.zoom": "zoom the picture", "keys.play": "play or pause", "keys.pause": "pause, go on", "keys.help": "these keys",

    "admin.title": "Overview", "admin.refreshed": "Looked at {time}, again every {seconds} s", "admin.export": "Export (JSONL)",
    "admin.agreement": "Agreement", "admin.alpha": "Krippendorff’s alpha", "admin.interval": "95 % interval {low} to {high}",
    "admin.alpha.about": "{items} items with two judgements or more. From 0.8 on judgements can be relied on; from 0.667 on with care.",
    "admin.kappa": "Kappa", "admin.kappa.about": "chance-corrected, pairs of raters", "admin.interval.none": "too few judgements for an interval", "admin.items": "Items done", "admin.items.about": "of {num}, {waiting} waiting, {gold} gold",
    "admin.judgements": "Judgements", "admin.judgements.about": "{withdrawn} withdrawn", "admin.scale": "Alpha {alpha} on a scale from {from} to 1",
    "admin.hours": "Judgements per hour", "admin.hours.about": "{num} judgements in {hours} hours, at most {most} in one", "admin.bar": "{hour}: {num}",
    "admin.raters": "Raters", "admin.name": "Rater", "admin.judged": "Judged", "admin.skipped": "skipped",
    "admin.perhour": "Per hour", "admin.latency": "median latency", "admin.gold": "Gold", "admin.gold.n": "of {num}", "admin.bias": "First chosen",
    "admin.bias.p": "{p}, n = {num}", "admin.bias.plain": "n = {num}", "admin.self": "Self agreement", "admin.reliability": "Reliability", "admin.reliability.n": "{num} shared", "admin.state": "State", "admin.standing": "counts",
    "admin.aside": "set aside", "admin.revoked": "revoked", "admin.revoke": "Revoke", "admin.revoke.label": "Revoke {name}",
    "admin.revoke.title": "Revoke {name}?", "admin.revoke.about": "The session of {name} ends and the invitation is void. Judgements stay.",
    "admin.revoke.done": "{name} is revoked.", "admin.none": "Nobody has been invited yet.",
    "admin.raters.about": "First chosen: how often the completion shown first was chosen, with the p-value against one half. Gold: share of known answers that were hit. Self agreement: the same item shown again. Reliability: expected share of right answers, by what others say of the same items (Dawid and Skene).",
    "admin.strengths": "Which answers people prefer", "admin.policy": "Policy", "admin.compared": "Compared", "admin.strength": "Strength", "admin.against": "Against the first",
    "admin.strength.about": "By the policy’s weights version (Bradley–Terry, with rankings Plackett–Luce); the mean of a run is 0. Against the first: how often its answers would be preferred to those of the run’s first row.",
    "admin.strength.none": "Nobody has compared answers of different versions of the policy yet.",
    "admin.model": "Reward model", "admin.version": "Version", "admin.eaten": "Judgements", "admin.accuracy": "Held out: before → after",
    "admin.foreseen": "Right on new ones", "admin.state": "State", "admin.state.current": "judges", "admin.state.kept": "kept", "admin.state.refused": "not better: left out",
    "admin.gain": "Gain", "admin.at": "At", "admin.model.about": "{num} comparisons in all. “Right on new ones” is of the model before, on comparisons that it had not learned from; “held out” are never learned from.",
    "admin.model.none": "No version has been fitted yet.", "admin.kinds": "By kind", "admin.hours.none": "No judgement yet.",
    "admin.invite": "Invite a rater", "admin.invite.name": "Name", "admin.invite.role": "Role", "admin.invite.days": "Valid for days",
    "admin.invite.do": "Make invitation", "admin.invite.address": "Address for {name}", "admin.invite.once": "It is shown this once. Whoever has it can log in.",
    "admin.copy": "Copy", "admin.copied": "Copied.", "rater": "rater", "expert": "expert", "admin": "admin",
    "kind.pair": "pair", "kind.ranking": "ranking", "kind.rating": "rating", "kind.skip": "skip", "kind.correction": "correction",
    "kind.harmful": "harmful", "kind.reward": "reward", "kind.withdrawal": "withdrawal",
  },
  zh: {
    "title": "评分 · Polyphony", "other.language": "English", "jump": "跳到内容", "views": "视图",
    "view.rate": "评分", "view.admin": "概览", "pause": "暂停", "keys": "按键", "logout": "退出",
    "retry": "立即重试", "loading": "正在加载……", "close": "关闭", "cancel": "取消", "actions": "您的判断",
    "said": "{text}",
    "progress": "进度", "progress.text": "已评 {judged} · 剩余 {left}",
    "trouble.kept": "无法连接服务器。您的判断保存在此标签页中，会自动重新发送。",
    "trouble": "无法连接服务器，正在自动重试。",
    "unreachable": "无法连接服务器，未做任何更改：请重试。",
    "trouble.slow": "服务器请求稍候，随后会自动继续。",

    "login.title": "哪个回答更好？", "login": "登录", "login.label": "邀请码",
    "login.about": "由人来看、来听、来判断，模型才知道什么是好的回答。请打开发给您的地址，或在此输入邀请码。",
    "login.empty": "请输入您收到的邀请码。", "login.done": "欢迎，{name}。",
    "login.expired": "会话已结束，请重新登录：您输入的内容仍然保留。", "logged.out": "您已退出。",
    "who": "{name}",

    "prompt": "提示", "role.user": "用户", "role.system": "系统", "role.assistant": "助手",
    "answer.n": "回答 {n}", "answer.text": "回答 {n} 的文字", "answer.empty": "（空回答）",
    "pair.question": "哪个回答更好？", "pair.hint": "请依据提示及其媒体来判断，不要看长短。",
    "pair.choose": "回答 {n} 更好", "pair.tie": "不分高下",
    "ranking.question": "请为回答排序", "ranking.hint": "最好的在前。拖动手柄、使用箭头，或按从好到差的顺序按数字键。拖到另一个回答上表示并列。",
    "ranking.rank": "第 {rank} 名", "ranking.tied": "并列第 {rank} 名", "ranking.none": "未排名",
    "ranking.up": "上移回答 {n}", "ranking.down": "下移回答 {n}", "ranking.tie": "回答 {n} 与前一个并列",
    "ranking.moved": "回答 {n}：第 {rank} 名，共 {of} 个。", "ranking.removed": "回答 {n} 未排名。",
    "ranking.incomplete": "请先为每个回答排名：还差 {missing} 个。", "ranking.clear": "清除", "ranking.count": "已排 {done} / {of}",
    "rating.question": "请为每个回答打分", "rating.hint": "1 为差，5 为优。", "rating.point": "{value} 分（满分 5 分）",
    "criterion.helpful": "有用", "criterion.grounded": "符合媒体内容", "criterion.fluent": "表达流畅", "criterion.safe": "安全",
    "rating.incomplete": "每个回答至少评一项：回答 {n} 尚未评分。",
    "rating.open": "还有 {missing} 项未评。再按一次 Enter 即照此提交。", "rating.count": "已评 {done} / {of}",
    "submit": "提交", "saving": "正在保存……", "saved": "已保存。按 U 撤回。", "undo": "撤回",
    "undone": "已撤回，该项重新显示。", "undo.none": "没有可撤回的判断。", "gone": "此项已不再开放：{text}",

    "skip": "跳过", "skip.title": "跳过此项", "skip.label": "原因（可不填）", "skip.confirm": "跳过",
    "correct": "更正", "correct.label": "回答 {n} 应该怎么说",
    "harmful": "有害", "harmful.on": "回答 {n} 已标为有害。按 F 取消。", "harmful.off": "已取消标记。",
    "thumb.up": "好", "thumb.down": "差", "thumb.is_up": "回答 {n} 已点赞。", "thumb.is_down": "回答 {n} 已点踩。", "thumb.gone": "已取消对回答 {n} 的评价。",
    "reward": "奖励", "reward.label": "回答 {n} 的奖励", "focus.first": "请先用 ← → 选择一个回答，再按 {key}。",
    "reward.invalid": "回答 {n} 的奖励不是数字。",

    "picture.zoom": "放大图片 {n}", "picture.alt": "提示中的图片 {n}", "zoom.title": "图片", "zoom.place": "{n} / {of}",
    "sound.play": "播放声音 {n}", "sound.pause": "暂停声音 {n}", "sound.seek": "声音 {n} 的位置",
    "sound": "声音 {n}", "video": "视频 {n}",
    "media.failed": "无法加载此媒体。", "media.again": "重新加载",

    "paused.title": "已暂停", "paused.about": "计时已停止，请慢慢来。", "resume": "继续", "resumed": "继续。",
    "nothing.title": "暂时没有可评的内容", "nothing.about": "谢谢。此页面会自动查找新的内容。",

    "keys.title": "按键", "keys.pair": "选择回答 1 或 2", "keys.tie": "不分高下（排序时：焦点回答与前一个并列）",
    "keys.rank": "排序：给该回答下一个名次，或收回", "keys.move": "排序：移动焦点回答",
    "keys.rate": "打分：设定焦点标准", "keys.focus": "在回答之间移动", "keys.submit": "提交",
    "keys.skip": "跳过", "keys.undo": "撤回上一个判断", "keys.correct": "更正焦点回答",
    "keys.harmful": "将焦点回答标为有害", "keys.reward": "给焦点回答奖励（专家）",
    "keys.thumb": "为焦点回答点赞或点踩",
    "keys.zoom": "放大图片", "keys.play": "播放或暂停", "keys.pause": "暂停、继续", "keys.help": "显示按键",

    "admin.title": "概览", "admin.refreshed": "{time} 更新，每 {seconds} 秒一次", "admin.export": "导出（JSONL）",
    "admin.agreement": "一致性", "admin.alpha": "Krippendorff α", "admin.interval": "95 % 区间 {low} 至 {high}",
    "admin.alpha.about": "{items} 项有两个或更多判断。0.8 以上可以信赖；0.667 以上需谨慎。",
    "admin.kappa": "Kappa", "admin.kappa.about": "扣除偶然一致，按评分者两两计算", "admin.interval.none": "判断太少，没有区间", "admin.items": "完成的项目", "admin.items.about": "共 {num}，等待 {waiting}，金标 {gold}",
    "admin.judgements": "判断", "admin.judgements.about": "撤回 {withdrawn}", "admin.scale": "α {alpha}，刻度从 {from} 到 1",
    "admin.hours": "每小时判断数", "admin.hours.about": "{hours} 小时内 {num} 个判断，每小时最多 {most} 个", "admin.bar": "{hour}：{num}",
    "admin.raters": "评分者", "admin.name": "评分者", "admin.judged": "已评", "admin.skipped": "跳过",
    "admin.perhour": "每小时", "admin.latency": "用时中位数", "admin.gold": "金标", "admin.gold.n": "共 {num}", "admin.bias": "选首位",
    "admin.bias.p": "{p}，n = {num}", "admin.bias.plain": "n = {num}", "admin.self": "自我一致", "admin.reliability": "可靠度", "admin.reliability.n": "共同 {num}", "admin.state": "状态", "admin.standing": "计入",
    "admin.aside": "搁置", "admin.revoked": "已撤销", "admin.revoke": "撤销", "admin.revoke.label": "撤销 {name}",
    "admin.revoke.title": "撤销 {name}？", "admin.revoke.about": "{name} 的会话将结束，邀请作废。判断保留。",
    "admin.revoke.done": "{name} 已撤销。", "admin.none": "尚未邀请任何人。",
    "admin.raters.about": "选首位：首先显示的回答被选中的比例，以及相对于一半的 p 值。金标：命中已知答案的比例。自我一致：同一项再次显示。可靠度：根据他人对同一项的判断估计的正确比例（Dawid–Skene）。",
    "admin.strengths": "人们更喜欢哪些回答", "admin.policy": "策略", "admin.compared": "比较数", "admin.strength": "强度", "admin.against": "相对首行",
    "admin.strength.about": "按策略的权重版本（Bradley–Terry，有排序时为 Plackett–Luce）；一次运行的均值为 0。相对首行：其回答比该运行首行的回答更受喜欢的比例。",
    "admin.strength.none": "还没有人比较过策略不同版本的回答。",
    "admin.model": "奖励模型", "admin.version": "版本", "admin.eaten": "判断数", "admin.accuracy": "留出准确率：前 → 后",
    "admin.foreseen": "新判断上的准确率", "admin.state": "状态", "admin.state.current": "正在评分", "admin.state.kept": "保留", "admin.state.refused": "未变好：不采用",
    "admin.gain": "增益", "admin.at": "时间", "admin.model.about": "共使用 {num} 个比较。“新判断上的准确率”指前一版本在未学过的比较上的准确率；“留出”的比较从不用于学习。",
    "admin.model.none": "尚未拟合任何版本。", "admin.kinds": "按类型", "admin.hours.none": "还没有判断。",
    "admin.invite": "邀请评分者", "admin.invite.name": "姓名", "admin.invite.role": "角色", "admin.invite.days": "有效天数",
    "admin.invite.do": "生成邀请", "admin.invite.address": "{name} 的地址", "admin.invite.once": "只显示这一次。持有者即可登录。",
    "admin.copy": "复制", "admin.copied": "已复制。", "rater": "评分者", "expert": "专家", "admin": "管理员",
    "kind.pair": "比较", "kind.ranking": "排序", "kind.rating": "打分", "kind.skip": "跳过", "kind.correction": "更正",
    "kind.harmful": "有害", "kind.reward": "奖励", "kind.withdrawal": "撤回",
  },
};

const SHELF = "polyphony.language";
const PLACES = {
  word: (node, text) => { node.textContent = text; },
  wordLabel: (node, text) => node.setAttribute("aria-label", text),
  wordAlt: (node, text) => node.setAttribute("alt", text),
};

function remembered() {
  try {
    return localStorage.getItem(SHELF);
  } catch {
    return null; // storage is forbidden here
  }
}

let language = [remembered(), navigator.language.slice(0, 2)].find((name) => Object.hasOwn(WORDS, name ?? "")) ?? "en";

export const currentLanguage = () => language;

/** Adds words that the server brought, as {en: {key: text}, zh: {key: text}}. */
export function addWords(words) {
  for (const [name, texts] of Object.entries(words)) Object.assign(WORDS[name] ?? {}, texts);
}

export const hasWord = (key) => Object.hasOwn(WORDS.en, key);

/** The word in the current language, with {names} filled in; an unknown key is shown as it is. */
export function word(key, values = {}) {
  const text = WORDS[language][key] ?? WORDS.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

function speak(node) {
  const values = node.dataset.wordValues ? JSON.parse(node.dataset.wordValues) : {};
  for (const [place, put] of Object.entries(PLACES)) if (node.dataset[place]) put(node, word(node.dataset[place], values));
}

/** Makes a node show a word as its text, or as its "label" or "alt", in whatever language is chosen later. */
export function say(node, key, ...rest) {
  const [values, where] = typeof rest[0] === "string" ? [{}, rest[0]] : [rest[0] ?? {}, rest[1] ?? "text"];
  node.dataset[{ text: "word", label: "wordLabel", alt: "wordAlt" }[where]] = key;
  if (Object.keys(values).length) node.dataset.wordValues = JSON.stringify({ ...JSON.parse(node.dataset.wordValues ?? "{}"), ...values });
  speak(node);
}

/** Puts the current language on the whole page. */
export function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = word("title");
  document.querySelectorAll("[data-word], [data-word-label], [data-word-alt]").forEach(speak);
}

/** Changes to the other language and remembers it. */
export function switchLanguage() {
  language = language === "en" ? "zh" : "en";
  try {
    localStorage.setItem(SHELF, language);
  } catch {
    // Storage is forbidden here: the choice lasts until the page is closed.
  }
  translate();
}
