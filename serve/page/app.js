"use strict";
// One page over the public API: nothing here that a client could not do.

const $ = id => document.getElementById(id);
const PAGE = 20;
const session = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2);
const dialogue = [];  // the turns so far, sent along while "keep the conversation" is on

function make(tag, className = "", text, attributes = {}) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function button(text, className, act) {
  const made = make("button", className, text, {type: "button"});
  made.addEventListener("click", act);
  return made;
}

const percent = value => (100 * value).toFixed((value > .995 && value < .9995) || (value > 0 && value < .1) ? 1 : 0) + " %";

// the API

const stored = () => sessionStorage.getItem("agm-key") || "";

async function request(method, path, body, signal) {
  const headers = {};
  if (stored()) headers.authorization = "Bearer " + stored();
  if (body) headers["content-type"] = "application/json";
  let reply;
  try {
    reply = await fetch(path, {method, headers, signal, body: body && JSON.stringify(body)});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The endpoint cannot be reached.");
  }
  if (reply.ok) return reply;
  const told = await reply.json().catch(() => ({}));
  if (reply.status === 401) askForKey(stored() ? told.error?.message : "");
  const wait = reply.status === 429 ? ` Try again in ${reply.headers.get("retry-after") || 1} s.` : "";
  throw new Error((told.error ? told.error.message : "HTTP " + reply.status) + wait);
}

const call = async (method, path, body) => (await request(method, path, body)).json();

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) if (line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}

// asking

let running = null;  // aborts the answer that is being decoded

function body(question, minimum) {
  const turns = $("dialogue").checked ? dialogue : [];
  const asked = {messages: [...turns, {role: "user", content: question}], stream: true, session, min_lesson_seq: minimum};
  if ($("strategy").value) asked.strategy = $("strategy").value;
  return asked;
}

async function ask(question, minimum = 0, before = null) {
  $("answers").querySelector(".empty")?.remove();
  running?.abort();
  const card = make("article", "card"), answer = make("p", "answer waiting", "");
  card.append(make("p", "question", question), answer);
  $("answers").prepend(card);
  const abort = running = new AbortController(), began = performance.now();
  const stop = button("Stop", "quiet small", () => abort.abort());
  card.append(stop);
  let memory = null, failed = null;
  try {
    for await (const chunk of events(await request("POST", "/v1/chat/completions", body(question, minimum), abort.signal))) {
      if (chunk.error) throw new Error(chunk.error.message);
      answer.textContent += chunk.choices[0]?.delta.content || "";
      memory = chunk.memory || memory;
    }
  } catch (error) {
    failed = error.name === "AbortError" ? "Stopped." : error.message;
  }
  if (running === abort) running = null;
  stop.remove();
  answer.classList.remove("waiting");
  if (failed) card.append(make("p", "error", failed, {role: "alert"}));
  if (memory) answered(card, question, answer.textContent, memory, performance.now() - began, before);
  refresh();
}

function answered(card, question, text, memory, milliseconds, before) {
  if (!text) card.querySelector(".answer").append(make("span", "dim", "(nothing)"));
  dialogue.push({role: "user", content: question}, {role: "assistant", content: text});
  if (before !== null) {
    const change = make("p", "change", before === text ? "Unchanged." : "Was ");
    if (before !== text) change.append(make("s", "", before || "(nothing)"));
    card.querySelector(".answer").after(change);
  }
  const row = make("div", "facts");
  row.append(make("span", "tag strategy" + (memory.strategy === "weights" ? "" : " good"), memory.strategy));
  row.append(make("span", "tag", "model " + memory.model_version), make("span", "tag", Math.round(milliseconds) + " ms"));
  if (memory.strategy !== "weights" || memory.null_weight < 1) row.append(make("span", "", "no lesson applies: " + percent(memory.null_weight)));
  card.append(row, cited(memory.lessons), reactions(card, question, text, memory.response_id));
}

function cited(lessons) {
  const list = make("ul", "cited", undefined, {"aria-label": "Lessons used"});
  for (const lesson of lessons) {
    const item = make("li", "", undefined, {title: lesson.lesson_id});
    item.append(make("span", "", lesson.question + " "), make("b", "", lesson.answer));
    item.append(make("span", "", ` · weight ${percent(lesson.weight)} · belief ${percent(lesson.belief)}`));
    list.append(item);
  }
  return list;
}

function reactions(card, question, text, id) {
  const row = make("div", "actions"), form = correction(card, question, text, id);
  const rate = (label, value) => button(label, "quiet small", async event => {
    const pressed = event.currentTarget;
    await told(card, () => call("POST", "/v1/feedback", {response_id: id, kind: "rating", value, session}));
    for (const other of row.querySelectorAll("[data-rating]")) other.setAttribute("aria-pressed", other === pressed);
  });
  const good = rate("Right", 1), bad = rate("Wrong", -1);
  good.dataset.rating = bad.dataset.rating = "";
  row.append(good, bad, button("Correct it", "quiet small", () => { form.hidden = !form.hidden; if (!form.hidden) form.answer.focus(); }));
  const group = make("div");
  group.append(row, form);
  return group;
}

function correction(card, question, text, id) {
  const form = make("form", "correct"), line = make("div", "line");
  const input = make("input", "", undefined, {name: "answer", required: "", maxlength: 4000, placeholder: "The right answer", "aria-label": "The right answer", autocomplete: "off"});
  const here = make("input", "", undefined, {type: "checkbox", name: "here"}), label = make("label", "inline");
  label.append(here, "only for this session");
  line.append(input, make("button", "", "Correct and ask again"));
  form.append(line, label);
  form.hidden = true;
  form.addEventListener("keydown", event => { if (event.key === "Escape") form.hidden = true; });
  form.addEventListener("submit", event => {
    event.preventDefault();
    told(card, async () => {
      const feedback = {response_id: id, kind: "correction", value: input.value};
      if (here.checked) feedback.session = session;
      const receipt = await call("POST", "/v1/feedback", feedback);
      form.hidden = true;
      dialogue.splice(-2);  // the wrong answer is no part of the conversation
      await ask(question, receipt.lesson_seq, text);
      $("question").focus();
    });
  });
  return form;
}

async function told(place, act) {
  place.querySelector(":scope > .error")?.remove();
  try { await act(); } catch (error) { place.append(make("p", "error", error.message, {role: "alert"})); }
}

// lessons

let offset = 0, latest = 0;

async function lessons(more = false) {
  offset = more ? offset + PAGE : 0;
  const turn = ++latest, query = new URLSearchParams({search: $("search").value.trim(), offset, limit: PAGE, session});
  let page;
  try { page = await call("GET", "/v1/lessons?" + query); } catch (error) { $("lesson-count").textContent = error.message; return; }
  if (turn !== latest) return;  // a later search has been begun
  if (!more) $("lesson-list").replaceChildren();
  $("lesson-list").append(...page.data.map(lessonCard));
  $("lesson-count").textContent = page.total === 1 ? "1 lesson" : page.total + " lessons";
  $("more").hidden = !page.has_more;
}

function lessonCard(lesson) {
  const card = make("article", "card lesson", undefined, {"data-lesson": lesson.lesson_id}), belief = lesson.beliefs[lesson.answer] || 0;
  const bar = make("div", "belief", undefined, {role: "img", "aria-label": "belief " + percent(belief)}), filled = make("i");
  filled.style.width = 100 * belief + "%";
  bar.append(filled);
  card.append(make("p", "question", lesson.question), make("b", "", lesson.answer));
  const row = make("div", "facts"), others = Object.keys(lesson.beliefs).length - 1;
  row.append(make("span", "tag", lesson.scope), bar, make("span", "", "belief " + percent(belief)), make("span", "", "from " + lesson.source));
  if (lesson.previous) row.append(make("span", "", "was “" + lesson.previous + "”"));
  if (others > 0) row.append(make("span", "", others + " other candidate" + (others > 1 ? "s" : "")));
  if (lesson.paraphrases.length) row.append(make("span", "", lesson.paraphrases.length + " more wording" + (lesson.paraphrases.length > 1 ? "s" : ""), {title: lesson.paraphrases.join("\n")}));
  card.append(row, lessonActions(card, lesson));
  return card;
}

function lessonActions(card, lesson) {
  const row = make("div", "actions"), form = make("form", "correct"), line = make("div", "line");
  const input = make("input", "", undefined, {required: "", maxlength: 4000, "aria-label": "New answer"});
  const path = `/v1/lessons/${encodeURIComponent(lesson.lesson_id)}`;
  input.value = lesson.answer;
  line.append(input, make("button", "", "Save"), button("Cancel", "quiet", () => { form.hidden = true; row.hidden = false; }));
  form.append(line);
  form.hidden = true;
  form.addEventListener("submit", event => {
    event.preventDefault();
    told(card, async () => {
      await call("PATCH", path, {answer: input.value, session});
      card.replaceWith(lessonCard(await call("GET", `${path}?session=${session}`)));
      refresh();
    });
  });
  const retract = button("Retract", "quiet small warn", () => {
    if (!retract.dataset.sure) { retract.dataset.sure = "1"; retract.textContent = "Really retract?"; return; }
    told(card, async () => { await call("DELETE", `${path}?session=${session}`); overlap(null); await lessons(); refresh(); });
  });
  retract.addEventListener("blur", () => { delete retract.dataset.sure; retract.textContent = "Retract"; });
  row.append(button("Edit", "quiet small", () => { form.hidden = false; row.hidden = true; input.select(); }), retract);
  const group = make("div");
  group.append(row, form);
  return group;
}

function overlap(other) {  // the lesson that answered the taught question so far, in other words
  $("overlap").hidden = !other;
  if (!other) return;
  const what = other.replaced ? `“${other.question}” answered “${other.answer}” so far.` : `“${other.question}” still answers “${other.answer}”: retract it if it is the same fact.`;
  $("overlap").replaceChildren(make("span", "", what), button("Show it", "quiet small", () => { $("search").value = other.question; lessons(); }));
}

// cycles

async function cycles() {
  let page;
  try { page = await call("GET", "/v1/cycles"); } catch (error) { $("cycle-list").replaceChildren(make("p", "error", error.message)); return; }
  $("cycle-list").replaceChildren(...page.data.map(cycleCard));
  if (!page.data.length) $("cycle-list").append(make("p", "empty", "No cycle has run yet: “agm update” folds the lessons into the weights."));
  const measured = page.data.filter(cycle => cycle.checks.length).reverse();
  $("curve").hidden = measured.length === 0;
  $("curve").querySelector("svg")?.remove();
  if (measured.length) $("curve").append(curve(measured));
}

function cycleCard(cycle) {
  const card = make("article", "card"), row = make("div", "facts");
  row.append(make("span", "tag " + (cycle.promoted ? "good" : "bad"), cycle.promoted ? "promoted" : "refused"));
  row.append(make("b", "", cycle.cycle === null ? "By hand" : "Cycle " + cycle.cycle), make("span", "", "version " + cycle.version));
  if (cycle.champion) row.append(make("span", "tag good", "champion"));
  row.append(make("span", "", new Date(cycle.time).toLocaleString()));
  card.append(row);
  if (cycle.checks.length) {
    const table = make("table"), scroll = make("div", "scroll");
    table.append(line("th", ["check", "value", "lower bound", "margin", "n"]));
    for (const c of cycle.checks) table.append(line("td", [c.name, c.value.toFixed(3), c.low.toFixed(3), c.margin, c.n], c.passed ? "" : "bad"));
    scroll.append(table);
    card.append(scroll);
  }
  const details = make("details"), list = make("ul");
  for (const reason of cycle.reasons) list.append(make("li", "", reason));
  details.append(make("summary", "", "Reasons"), list);
  card.append(details);
  return card;
}

function line(tag, cells, className = "") {
  const row = make("tr");
  row.append(...cells.map(cell => make(tag, className, cell)));
  return row;
}

function curve(measured) {
  const space = "http://www.w3.org/2000/svg", W = 640, H = 190, left = 58, bottom = 162, top = 14;
  const drawn = (tag, attributes, text) => {
    const made = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const svg = drawn("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Retention and earlier lessons by cycle"});
  const of = (cycle, name) => cycle.checks.find(check => check.name === name && check.n > 0);
  const x = i => left + (W - left - 20) * (measured.length === 1 ? .5 : i / (measured.length - 1)), y = v => bottom - (bottom - top) * Math.max(0, Math.min(1, v));
  for (const v of [0, .5, 1]) svg.append(drawn("line", {class: "grid", x1: left, x2: W - 20, y1: y(v), y2: y(v)}), drawn("text", {x: 8, y: y(v) + 4}, percent(v)));
  const series = (name, className, value) => {
    const points = measured.map((cycle, i) => [cycle, i, of(cycle, name)]).filter(([, , check]) => check).map(([cycle, i, check]) => [x(i), y(value(check)), cycle, value(check)]);
    svg.append(drawn("polyline", {class: className, points: points.map(([a, b]) => a + "," + b).join(" ")}));
    for (const [a, b, cycle, v] of points) {
      const dot = drawn("circle", {class: className, cx: a, cy: b, r: 4});
      dot.append(drawn("title", {}, `version ${cycle.version}, ${name}: ${percent(v)}`));
      svg.append(dot);
    }
  };
  series("retention kept", "one", check => check.value);
  series("earlier lessons", "two", check => 1 + Math.min(0, check.value));  // what of the champion's was not lost
  measured.forEach((cycle, i) => svg.append(drawn("text", {x: x(i), y: H - 12, "text-anchor": "middle"}, "v" + cycle.version)));
  svg.append(drawn("line", {class: "one", x1: left + 8, x2: left + 28, y1: bottom - 30, y2: bottom - 30}), drawn("text", {x: left + 33, y: bottom - 26}, "probes right before, still right"));
  svg.append(drawn("line", {class: "two", x1: left + 8, x2: left + 28, y1: bottom - 12, y2: bottom - 12}), drawn("text", {x: left + 33, y: bottom - 8}, "earlier lessons kept in the weights"));
  return svg;
}

// the frame

function askForKey(message = "") {
  $("key-box").hidden = false;
  $("key-error").hidden = !message;
  $("key-error").textContent = message;
}

async function refresh() {
  if (!stored()) { $("state").textContent = "no key"; askForKey(); return; }
  try {
    const told = await call("GET", "/version");
    $("state").textContent = `model ${told.model_version} · lessons through ${told.lesson_seq}`;
    $("key-box").hidden = true;
  } catch (error) { $("state").textContent = $("key-box").hidden ? error.message : "no valid key"; }
}

function show() {
  const wanted = ["ask", "lessons", "cycles"].find(name => location.hash === "#" + name) || "ask";
  for (const name of ["ask", "lessons", "cycles"]) $("view-" + name).hidden = name !== wanted;
  for (const link of document.querySelectorAll("nav a")) link.hash === "#" + wanted ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  if (!stored()) return;
  if (wanted === "lessons") lessons();
  if (wanted === "cycles") cycles();
  if (wanted === "ask") $("question").focus();
}

const THEMES = {"": ["◐", "as the system"], light: ["☀", "light"], dark: ["☾", "dark"]};
function theme(chosen) {
  document.documentElement.dataset.theme = chosen;
  localStorage.setItem("agm-theme", chosen);
  $("theme").textContent = THEMES[chosen][0];
  $("theme").setAttribute("aria-label", "Colours: " + THEMES[chosen][1]);
}

$("theme").addEventListener("click", () => { const all = Object.keys(THEMES); theme(all[(all.indexOf(document.documentElement.dataset.theme) + 1) % all.length]); });
$("ask-form").addEventListener("submit", event => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (question) ask(question);
  $("question").select();
});
$("dialogue").addEventListener("change", () => { dialogue.length = 0; });
let typing;
$("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(lessons, 200); });
$("more").addEventListener("click", () => lessons(true));
$("teach-open").addEventListener("click", () => {
  $("teach-form").hidden = !$("teach-form").hidden;
  $("teach-open").setAttribute("aria-expanded", !$("teach-form").hidden);
  if (!$("teach-form").hidden) $("teach-question").focus();
});
$("teach-form").addEventListener("reset", () => { $("teach-form").hidden = true; $("teach-open").setAttribute("aria-expanded", false); });
$("teach-form").addEventListener("submit", event => {
  event.preventDefault();
  const error = $("teach-form").querySelector(".error");
  call("POST", "/v1/lessons", {question: $("teach-question").value, answer: $("teach-answer").value})
    .then(reply => { error.hidden = true; $("teach-form").reset(); overlap(reply.overlap); lessons(); refresh(); })
    .catch(failure => { error.hidden = false; error.textContent = failure.message; });
});
$("key-form").addEventListener("submit", async event => {
  event.preventDefault();
  sessionStorage.setItem("agm-key", $("key").value.trim());
  $("key").value = "";
  await refresh();
  show();
});
document.addEventListener("keydown", event => {
  const typingNow = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
  if (event.key === "/" && !typingNow) { event.preventDefault(); ($("view-lessons").hidden ? $("question") : $("search")).focus(); }
  if (event.key === "Escape") running?.abort();
});
window.addEventListener("hashchange", show);
if (location.hash.startsWith("#key=")) {  // the part after # is never sent; it leaves the address bar at once
  sessionStorage.setItem("agm-key", decodeURIComponent(location.hash.slice(5)));
  history.replaceState(null, "", location.pathname);
}
theme(THEMES[localStorage.getItem("agm-theme")] ? localStorage.getItem("agm-theme") : "");
refresh();
show();
