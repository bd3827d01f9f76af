"use strict";
// Which questions are listed, and in which order.

const PAGE = 100;
const SORTS = {
  "file order": (one, other) => one.place - other.place,
  "least sure first": (one, other) => (one.margin ?? 2) - (other.margin ?? 2),
  "surest first": (one, other) => (other.margin ?? -1) - (one.margin ?? -1),
  "answer's probability": (one, other) => answerProbability(one) - answerProbability(other),
  id: (one, other) => one.id.localeCompare(other.id, undefined, { numeric: true }),
};

function answerProbability(question) {
  return question.answer === null ? 2 : question.probabilities[question.answer];
}

function choice(label, id, values) {
  const options = values.map(([value, text]) => element("option", { value, text }));
  return element("label", {}, label, element("select", { id }, ...options));
}

function numberField(label, id) {
  const field = element("input", { id, type: "number", min: 0, max: 1, step: 0.05 });
  return element("label", {}, label, field);
}

class QuestionBrowser {
  constructor(data) {
    this.data = data;
    this.shown = PAGE;
    data.questions.forEach((question, place) => {
      question.place = place;
      question.searched = [question.id, question.prompt, ...question.options].join("\n").toLowerCase();
    });
    this.makeControls();
    document.getElementById("told").textContent = data.told;
    document.getElementById("more").addEventListener("click", () => {
      this.shown += PAGE;
      this.list();
    });
    document.getElementById("browser").hidden = !data.questions.length;
    this.update();
  }

  makeControls() {
    const { stages, questions } = this.data;
    const verdicts = [...new Set(questions.map((question) => question.verdict))].sort();
    const controls = document.getElementById("controls");
    controls.append(element("input", { id: "find", type: "search", placeholder: "id or text", "aria-label": "id or text" }));
    controls.append(choice("answers", "verdict", [["", "all"], ...verdicts.map((name) => [name, name])]));
    if (stages.length) {
      controls.append(choice("stage", "stage", [["", "all"], ...stages.map((name, place) => [place, name])]));
    }
    controls.append(numberField("margin from", "least"), numberField("to", "most"));
    controls.append(choice("order", "sort", Object.keys(SORTS).map((name) => [name, name])));
    controls.append(element("button", { type: "button", text: "clear", on: { click: () => this.clear() } }));
    controls.append(element("span", { id: "count", role: "status" }));
    controls.addEventListener("input", () => this.update());
  }

  value(id) {
    return document.getElementById(id)?.value ?? "";
  }

  matches(question) {
    const least = this.value("least"), most = this.value("most"), stage = this.value("stage");
    const verdict = this.value("verdict");
    return (
      question.searched.includes(this.value("find").toLowerCase()) &&
      (!verdict || question.verdict === verdict) &&
      (stage === "" || question.stage === Number(stage)) &&
      (least === "" || question.margin >= Number(least)) &&
      (most === "" || question.margin <= Number(most))
    );
  }

  update() {
    this.shown = PAGE;
    this.found = this.data.questions.filter((question) => this.matches(question)).sort(SORTS[this.value("sort")]);
    const total = this.data.questions.length.toLocaleString("en");
    document.getElementById("count").textContent = `${this.found.length.toLocaleString("en")} of ${total}`;
    this.list();
    if (!this.found.includes(this.open) && this.found.length) this.show(this.found[0]);
  }

  list() {
    const rows = this.found.slice(0, this.shown).map((question) => this.row(question));
    document.getElementById("list").replaceChildren(...rows);
    document.getElementById("more").hidden = this.found.length <= this.shown;
  }

  row(question) {
    const button = element(
      "button",
      { type: "button", "aria-current": question === this.open, on: { click: () => this.show(question) } },
      element("span", { class: `badge ${question.verdict}`, text: question.names[question.order[0]] }),
      element("span", { class: "id", text: question.id }),
      element("span", { class: "soft", text: decimal(question.margin) }),
      element("span", { class: "prompt", text: question.prompt }),
    );
    return element("li", {}, button);
  }

  show(question) {
    this.open = question;
    for (const [place, row] of [...document.getElementById("list").children].entries()) {
      row.firstChild.toggleAttribute("aria-current", this.found[place] === question);
    }
    showQuestion(this.data, question);
  }

  showMargins(least, most) {
    document.getElementById("least").value = least;
    document.getElementById("most").value = most;
    this.update();
    document.getElementById("browser").scrollIntoView();
  }

  clear() {
    for (const field of document.querySelectorAll("#controls input, #controls select:not(#sort)")) field.value = "";
    this.update();
  }
}
