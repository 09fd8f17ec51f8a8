"use strict";
(() => {
  const page = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Light or dark: the system's, until somebody chooses.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const kept = (value) => {
    try {
      if (value) localStorage.setItem("combo-theme", value);
      return localStorage.getItem("combo-theme");
    } catch { return null; }  // a page from a disk may be refused its storage
  };
  if (kept()) page.dataset.theme = kept();
  const theme = () => {
    const now = page.dataset.theme || (dark.matches ? "dark" : "light");
    page.dataset.theme = now === "dark" ? "light" : "dark";
    kept(page.dataset.theme);
  };
  const keys = document.getElementById("keys");
  document.getElementById("theme").addEventListener("click", theme);
  document.getElementById("help").addEventListener("click", () => keys.showModal());

  // Filters: of the table that comes next.
  for (const form of all(".filter")) {
    const [words, kind, said] = ["input", "select", "output"].map((each) => form.querySelector(each));
    const rows = all("tbody tr", form.nextElementSibling);
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const what = said.textContent.trim().split(" ").pop();
    const apply = () => {
      const wanted = words.value.toLowerCase(), only = kind ? kind.value : "";
      let shown = 0;
      rows.forEach((row, place) => {
        row.hidden = !texts[place].includes(wanted) || (only !== "" && row.dataset.kind !== only);
        shown += !row.hidden;
      });
      said.textContent = `${shown} of ${rows.length} ${what}`;
    };
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();  // what a browser has kept of an earlier visit
  }

  // Sorting: by the number of a cell, else by its text.
  for (const table of all(".sortable")) {
    all("thead button", table).forEach((button) => button.addEventListener("click", () => {
      const head = button.closest("th"), column = [...head.parentNode.children].indexOf(head);
      const up = head.getAttribute("aria-sort") !== "ascending";
      all("thead th", table).forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => {
        const cell = row.children[column], text = cell.textContent.trim();
        const number = parseFloat(cell.dataset.value ?? text.replaceAll(",", ""));
        return { number, text };
      };
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => ({ row, ...value(row) }));
      const numbers = rows.every((each) => !Number.isNaN(each.number) || each.text === "");
      rows.sort((a, b) => numbers
        ? (Number.isNaN(a.number) ? -1 : a.number) - (Number.isNaN(b.number) ? -1 : b.number)
        : a.text.localeCompare(b.text, undefined, { numeric: true }));
      if (!up) rows.reverse();
      body.append(...rows.map((each) => each.row));
    }));
  }

  // Players: one at a time, and a line in the spectrogram that goes with the sound.
  const cards = all(".card");
  const players = cards.map((card) => card.querySelector("audio")).filter(Boolean);
  for (const player of players) {
    const card = player.closest(".card"), heard = card.querySelector(".heard");
    const wave = heard.querySelector(".wave"), head = heard.querySelector(".head");
    const seconds = parseFloat(heard.dataset.seconds);
    const place = () => {
      head.style.visibility = "visible";
      head.style.left = `${Math.min(100, 100 * player.currentTime / seconds)}%`;
    };
    const follow = () => { place(); if (!player.paused) requestAnimationFrame(follow); };
    player.addEventListener("play", () => {
      players.forEach((other) => other !== player && other.pause());
      follow();
    });
    player.addEventListener("seeked", place);
    wave.addEventListener("click", (event) => {
      const box = wave.getBoundingClientRect();
      const to = seconds * (event.clientX - box.left) / box.width;
      const go = () => { player.currentTime = to; };
      if (player.readyState) go();
      else player.addEventListener("loadedmetadata", go, { once: true });
      player.play();
    });
  }

  // Keys.
  const marked = () => cards.indexOf(document.activeElement.closest?.(".card"));
  const mark = (place) => {
    const card = cards[Math.max(0, Math.min(cards.length - 1, place))];
    card?.focus({ preventScroll: true });
    card?.scrollIntoView({ block: "center" });
  };
  const filters = all(".filter input");
  const actions = {
    j: () => mark(marked() + 1),
    k: () => mark(marked() < 0 ? 0 : marked() - 1),
    p: () => {
      const player = cards[marked()]?.querySelector("audio");
      if (player) player.paused ? player.play() : player.pause();
    },
    t: theme,
    "/": () => (filters.find((each) => each.getBoundingClientRect().top > 0) ?? filters[0])?.focus(),
    "?": () => keys.showModal(),
  };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, dialog");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });
})();
