"""The sample browser of a page: filters, searches and pages through prompts and their answers.

Each sample is {r: round, k: kind, p: [[role, text]], g: margin or null, c: answers, best first}, an answer
{t: text, v: reward or null, n: tokens, m: "chosen", "rejected" or "", o: notes}. The script sets texts as text alone.
"""

from __future__ import annotations

from ultramed_rl.report.samples import Samples
from ultramed_rl.tracking.page_parts import Widget

_MARKUP = """<style>
.browse { display: flex; flex-wrap: wrap; gap: 0.6rem 0.75rem; align-items: end; margin: 1rem 0 0.5rem; }
.browse label { display: flex; flex-direction: column; font-size: 0.8rem; color: var(--faint); min-width: 0; }
.browse label.search { flex: 1 1 14rem; }
.browse input, .browse select, .pager button { font: inherit; font-size: 0.95rem; color: var(--ink); background: \
var(--paper); border: 1px solid var(--line); border-radius: 6px; padding: 0.4rem 0.6rem; max-width: 100%; min-height: 2.5rem; }
.pager { display: flex; gap: 0.75rem; align-items: center; margin: 0.75rem 0; color: var(--faint); font-size: 0.9rem; }
.pager button { cursor: pointer; } .pager button:disabled { opacity: 0.4; cursor: default; }
.sample { border: 1px solid var(--line); border-radius: 8px; margin: 0 0 1rem; overflow: hidden; }
.sample header { padding: 0.75rem 1rem; background: var(--wash); border-bottom: 1px solid var(--line); }
.sample .meta { font-size: 0.8rem; color: var(--faint); margin: 0; }
.sample .text { margin: 0.3rem 0 0; max-width: none; max-height: 18rem; overflow: auto; unicode-bidi: isolate; \
white-space: pre-wrap; }
.sample header .text { font-weight: 500; max-height: 20rem; }
.answer { padding: 0.7rem 1rem; border-left: 4px solid transparent; }
.answer + .answer { border-top: 1px solid var(--line); }
.answer.chosen { border-left-color: var(--good); } .answer.rejected { border-left-color: var(--bad); }
.answer .line { display: flex; flex-wrap: wrap; gap: 0.1rem 0.75rem; font-size: 0.8rem; color: var(--faint); }
.answer .line b { color: var(--ink); font-variant-numeric: tabular-nums; }
.answer.chosen .mark { color: var(--good); font-weight: 600; } .answer.rejected .mark { color: var(--bad); font-weight: 600; }
.sample mark { background: #ffe08a; color: #1b1e24; border-radius: 2px; }
</style>
<div id="samples">
<form class="browse" role="search">
<label class="search">Search prompts and answers<input type="search" id="samples-search" autocomplete="off"></label>
<label>Round<select id="samples-round"></select></label>
<label>Show<select id="samples-kind"><option value="all">all prompts</option><option value="pair">with a pair</option>\
<option value="none">without a pair</option><option value="odd">with a refused, empty or cut answer</option></select></label>
<label>Order<select id="samples-order"><option value="given">by round</option><option value="margin">largest margin</option>\
<option value="small">smallest margin</option><option value="high">highest reward</option><option value="low">lowest reward\
</option></select></label>
</form>
<div class="pager"><button type="button" id="samples-before">Back</button><span id="samples-count" aria-live="polite">\
</span><button type="button" id="samples-next">Next</button></div>
<div id="samples-list"></div>
<div class="pager"><button type="button" id="samples-further">Next</button></div>
</div>"""

_SCRIPT = """"use strict";
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
    [...sample.p.map((turn) => turn[1]), ...sample.c.map((answer) => answer.t)].join("\\n").toLowerCase());
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
"""


def browser_widget(samples: Samples) -> Widget:
    """The browser over these samples; a page holds one."""
    return Widget("samples", _MARKUP, _SCRIPT, list(samples.shown))
