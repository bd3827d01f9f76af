"use strict";
// Brings the page to life; where the browser cannot, the page says so.

function offerThemes() {
  const button = document.getElementById("theme"), themes = ["system", "light", "dark"];
  button.hidden = false;
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "system";
    const next = themes[(themes.indexOf(now) + 1) % themes.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    button.textContent = `theme: ${next}`;
    document.dispatchEvent(new Event("theme"));
  });
}

async function start() {
  offerThemes();
  const browser = new QuestionBrowser(JSON.parse(await unpack("packed-questions")));
  await showCharts((least, most) => browser.showMargins(least, most));
}

start().catch((error) => {
  const trouble = document.getElementById("trouble");
  trouble.textContent = `This page's charts and questions cannot be shown: ${error.message}`;
  trouble.hidden = false;
  console.error(error);
});
