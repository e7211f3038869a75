// Filters, searches and pages through prompts and their answers. Each sample is {r: round, k: kind, p: [[role, text]],
// g: margin or null, c: answers, best first}, an answer {t: text, v: reward or null, n: tokens,
// m: "chosen", "rejected" or "", o: notes, d: [[what its reward was made of, number]]}. Texts are set as text alone, never as markup.
"use strict";
(() => {
  const PAGE = 8;
  const samples = JSON.parse(document.getElementById("samples-data").textContent);
  const part = (name) => document.getElementById(`samples-${name}`);
  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const rewards = (sample) => sample.c.map((answer) => answer.v).filter((value) => value !== null);
  const texts = samples.map((sample) =>
    [...sample.p.map((turn) => turn[1]), ...sample.c.map((answer) => answer.t)].join("\n").toLowerCase());
  const keep = {
    all: () => true, pair: (sample) => sample.g !== null, none: (sample) => sample.g === null,
    odd: (sample) => sample.c.some((answer) => answer.o.some((note) => !note.startsWith("reference"))),
  };
  const rank = {
    margin: (sample) => -(sample.g ?? -Infinity), small: (sample) => sample.g ?? Infinity,
    high: (sample) => -Math.max(...rewards(sample)), low: (sample) => Math.min(...rewards(sample)),
  };
  let page = 0;

  const marked = (text, sought) => {
    const node = make("p", "text");
    node.dir = "auto";
    // Where lower case has another length, places in it are not places in the text.
    const low = text.toLowerCase();
    if (!sought || low.length !== text.length) { node.textContent = text; return node; }
    let from = 0;
    for (let at = low.indexOf(sought); at >= 0; at = low.indexOf(sought, from)) {
      node.append(text.slice(from, at), make("mark", "", text.slice(at, at + sought.length)));
      from = at + sought.length;
    }
    node.append(text.slice(from));
    return node;
  };
  const answerNode = (answer, sought) => {
    const node = make("div", `answer ${answer.m}`);
    const line = node.appendChild(make("div", "line"));
    if (answer.m) line.append(make("span", "mark", answer.m));
    const reward = line.appendChild(make("span", "", "reward "));
    reward.append(make("b", "", answer.v === null ? "not finite" : answer.v.toFixed(2)));
    line.append(make("span", "", `${answer.n} tokens`));
    for (const note of answer.o) line.append(make("span", "", note));
    node.append(marked(answer.t, sought));
    const details = answer.d.length ? node.appendChild(make("ul", "details")) : null;
    for (const [name, value] of answer.d) details.append(make("li", "", `${{ 0: "✗", 1: "✓" }[value] ?? value} ${name}`));
    return node;
  };
  const sampleNode = (sample, sought) => {
    const node = make("article", "sample");
    const head = node.appendChild(make("header"));
    const margin = sample.g === null ? "no pair" : `margin ${sample.g.toFixed(2)}`;
    head.append(make("p", "meta", [`round ${sample.r}`, sample.k, margin].filter(Boolean).join(" · ")));
    for (const [role, text] of sample.p) {
      if (sample.p.length > 1) head.append(make("p", "meta", role));
      head.append(marked(text, sought));
    }
    for (const answer of sample.c) node.append(answerNode(answer, sought));
    return node;
  };
  const show = () => {
    const sought = part("search").value.trim().toLowerCase();
    const round = part("round").value, kind = keep[part("kind").value], order = rank[part("order").value];
    let found = [...samples.keys()].filter((place) => kind(samples[place])
      && (round === "all" || String(samples[place].r) === round) && texts[place].includes(sought));
    // Differences of infinities are no order.
    if (order) {
      const keys = new Map(found.map((place) => [place, order(samples[place])]));
      found.sort((a, b) => (keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : a - b));
    }
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const shown = found.slice(page * PAGE, (page + 1) * PAGE);
    part("list").replaceChildren(...shown.map((place) => sampleNode(samples[place], sought)));
    const first = found.length ? page * PAGE + 1 : 0;
    part("count").textContent = `${first} to ${page * PAGE + shown.length} of ${found.length}`;
    part("before").disabled = page === 0;
    part("next").disabled = part("further").disabled = page >= pages - 1;
  };
  const turn = (by) => () => { page += by; show(); document.getElementById("samples").scrollIntoView(); };
  const again = () => { page = 0; show(); };
  const option = (value, text) => { const node = make("option", "", text); node.value = value; return node; };
  const rounds = [...new Set(samples.map((sample) => sample.r))];
  part("round").append(option("all", "all"), ...rounds.map((round) => option(String(round), String(round))));
  for (const name of ["search", "round", "kind", "order"]) part(name).addEventListener("input", again);
  document.querySelector("#samples form").addEventListener("submit", (event) => event.preventDefault());
  part("before").addEventListener("click", turn(-1));
  for (const name of ["next", "further"]) part(name).addEventListener("click", turn(1));
  show();
})();
