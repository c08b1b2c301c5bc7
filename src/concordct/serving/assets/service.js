"use strict";
// The service's page: one state, drawn whole; the server says when there is a new one.
(() => {
  const $ = (id) => document.getElementById(id);
  const { role, secret } = document.body.dataset;
  const OPEN = ["received", "complete", "running", "made"];
  const STATES = [...OPEN, "sent", "failed", "dropped"];
  let state = JSON.parse($("state").textContent);
  let filter = "all";

  function element(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    if (text !== undefined && text !== null) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }
  function cell(row, ...content) {
    const made = element("td");
    made.append(...content.filter((one) => one !== null && one !== undefined));
    row.append(made);
    return made;
  }
  function small(text, kind) {
    return element("p", text, { class: "small " + (kind || "") });
  }

  function again(series) {
    const form = element("form", null, { method: "post", action: `/series/${series.id}/requeue` });
    form.append(
      element("input", null, { type: "hidden", name: "secret", value: secret }),
      element("button", series.state === "made" ? "Retry now" : "Run again", { type: "submit" }),
    );
    return form;
  }
  function row(series) {
    const made = element("tr", null, { "data-series": series.id, "data-state": series.state });
    const name = cell(made, element("code", series.id));
    name.title = series.uid;
    cell(made, element("span", series.state, { class: "state " + series.state }), series.reason ? small(series.reason) : null);
    cell(made, series.rule || "");
    cell(made, series.kernel || "");
    cell(made, String(series.objects), series.seconds === null ? null : small(series.seconds + " s"));
    const check = series.check;
    cell(made, ...(check ? [element("span", check.failed ? "failed" : "passed", { class: "state " + (check.failed ? "failed" : "sent") })] : []),
      ...(check ? check.lines.map((line) => small(line)) : []), ...series.notes.map((note) => small(note, "caution")));
    cell(made, ...series.deliveries.map((one) =>
      small(`${one.to}: ${one.state}${one.tries ? `, ${one.tries} tries` : ""}${one.reason ? `, ${one.reason}` : ""}`)));
    cell(made, element("span", series.since));
    cell(made, series.view ? element("a", "Before and after", { href: `/series/${series.id}/view` }) : null,
      series.again && role === "operator" ? again(series) : null);
    return made;
  }

  function draw() {
    $("counts").replaceChildren(...STATES.map((name) => {
      const count = state.counts[name];
      const card = element("div", null, { class: "card " + name, "data-count": name });
      card.append(element("p", name, { class: "label" }), element("p", String(count), { class: "value" }));
      return card;
    }));
    const typical = state.seconds === null ? "" : `, ${state.seconds} s a series`;
    $("figures").textContent =
      `Last hour: ${state.hour.series} series, ${state.hour.objects} objects sent${typical}. ` +
      `Store: ${state.used_gb} of ${state.quota_gb} GB.`;
    const wrong = Object.entries(state.healthy).filter(([, good]) => !good).map(([name]) => name);
    $("health").textContent = wrong.length ? "not well: " + wrong.join(", ") : "healthy";
    $("health").className = wrong.length ? "tag caution" : "tag";
    const shown = state.series.filter((one) =>
      filter === "all" || (filter === "open" ? OPEN.includes(one.state) : one.state === filter));
    $("series").replaceChildren(...shown.map(row));
    $("empty").hidden = shown.length > 0;
  }

  for (const button of document.querySelectorAll("[data-filter]")) {
    button.addEventListener("click", () => {
      filter = button.dataset.filter;
      for (const other of document.querySelectorAll("[data-filter]")) other.setAttribute("aria-pressed", String(other === button));
      draw();
    });
  }
  draw();
  const news = new EventSource("/events");
  news.onopen = () => { $("live").textContent = "live"; };
  news.onerror = () => { $("live").textContent = "not connected"; };
  news.onmessage = (message) => {
    state = JSON.parse(message.data);
    // A form that is about to be sent is not taken from under the hand.
    if (!document.activeElement || !document.activeElement.closest("#series form")) draw();
  };
})();
