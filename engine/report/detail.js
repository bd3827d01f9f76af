"use strict";
// One question: its options with scores, its context with the words of an option marked, what members say.

const WORD = /[\p{L}\p{N}]+/gu;
const SHORTEST_MARKED = 3;

function wordsOf(text) {
  return (text.match(WORD) ?? []).map((word) => word.toLowerCase());
}

// Words that an option has and not all options have: those tell nothing.
function tellingWords(question, option) {
  const others = question.options.map((text) => new Set(wordsOf(text)));
  const isShared = (word) => others.length > 1 && others.every((words) => words.has(word));
  const words = wordsOf(question.options[option] ?? question.names[option]);
  return new Set(words.filter((word) => word.length >= SHORTEST_MARKED && !isShared(word)));
}

// Marks the words of the chosen option; those that only the answer has are underlined.
function markedText(text, words, answerWords) {
  const shown = element("p", { class: "context" });
  let end = 0;
  for (const found of text.matchAll(WORD)) {
    const word = found[0].toLowerCase();
    if (!words.has(word) && !answerWords.has(word)) continue;
    const look = words.has(word) ? "of-option" : "of-answer";
    shown.append(text.slice(end, found.index), element("mark", { class: look, text: found[0] }));
    end = found.index + found[0].length;
  }
  shown.append(text.slice(end));
  return shown;
}

function optionButton(question, option, chosen, choose) {
  const isAnswer = question.answer === option;
  const isMiss = question.answer !== null && !isAnswer && question.order[0] === option;
  const text = element("span", { class: "text" });
  text.append(element("b", { text: question.names[option] }), question.options[option] ?? "");
  if (isAnswer) text.append(" ", element("span", { class: "badge right", text: "answer" }));
  return element(
    "button",
    {
      class: `option${isAnswer ? " answer" : ""}${isMiss ? " miss" : ""}`,
      type: "button",
      "aria-pressed": String(option === chosen),
      title: `score ${decimal(question.scores[option], 4)}; marks its words in the context`,
      on: { click: () => choose(option) },
    },
    text,
    element("meter", { min: 0, max: 1, value: question.probabilities[option] ?? 0 }),
    element("span", { class: "num", text: decimal(question.probabilities[option]) }),
  );
}

function memberTable(data, question) {
  const members = data.members.filter((name) => question.members[name]);
  if (!members.length) return null;
  const head = element("tr", {}, element("th", { text: "member" }));
  head.append(...question.names.map((name) => element("th", { class: "num", text: name })));
  const rows = members.map((name) => {
    const scores = question.members[name];
    const best = scores.indexOf(Math.max(...scores.filter((score) => score !== null)));
    const cells = scores.map((score, option) =>
      element("td", { class: option === best ? "num best-cell" : "num", text: decimal(score) }),
    );
    return element("tr", {}, element("td", { text: name }), ...cells);
  });
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  return element("div", {}, element("h4", { text: "members' scores" }), element("div", { class: "scroll" }, table));
}

function showQuestion(data, question, chosen = question.order[0]) {
  const detail = document.getElementById("detail");
  const choose = (option) => showQuestion(data, question, option);
  const facts = [`margin ${decimal(question.margin)}`];
  if (question.stage !== null && data.stages.length) facts.push(`stage ${data.stages[question.stage]}`);
  const head = element(
    "div",
    {},
    element("span", { class: `badge ${question.verdict}`, text: question.verdict }),
    ...facts.map((text) => element("span", { class: "badge", text })),
    element("span", { class: "soft", text: question.id }),
  );
  const options = question.order.map((option) => optionButton(question, option, chosen, choose));
  const words = tellingWords(question, chosen);
  const hasOther = question.answer !== null && question.answer !== chosen;
  const answerWords = hasOther ? tellingWords(question, question.answer) : new Set();
  const told = `words of ${question.names[chosen]} marked${hasOther ? ", of the answer underlined" : ""}`;
  const contexts = question.contexts.map(([name, text]) =>
    element(
      "div",
      {},
      element("h4", { text: `${name}: ${told}` }),
      markedText(text, words, answerWords),
    ),
  );
  detail.replaceChildren(
    head,
    element("h3", { text: question.prompt }),
    element("div", { class: "options" }, ...options),
    ...[memberTable(data, question), ...contexts].filter((part) => part !== null),
  );
}
