"use strict";
(() => {
  document.documentElement.classList.add("js");
  for (const part of document.querySelectorAll("[data-script]")) part.hidden = false;

  // What a link leads to is opened, and on paper everything is.
  const arrive = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let part = target?.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    if (target?.closest("details")) target.scrollIntoView();
  };
  window.addEventListener("hashchange", arrive);
  arrive();
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const part of closed) part.open = true;
  });
  window.addEventListener("afterprint", () => { for (const part of closed) part.open = false; });

  // Pictures before and after lie on one another; a slider moves the border between them.
  for (const box of document.querySelectorAll("[data-compare]")) {
    const input = box.querySelector("input[type=range]");
    const show = () => {
      box.style.setProperty("--cut", `${input.value}%`);
      input.setAttribute("aria-valuetext", `${input.value} % ${input.dataset.before}`);
    };
    const drag = (event) => {
      if ((event.buttons & 1) === 0) return;
      const area = event.currentTarget.getBoundingClientRect();
      input.value = Math.round((100 * (event.clientX - area.left)) / area.width);
      show();
    };
    for (const pair of box.querySelectorAll(".pair")) {
      pair.addEventListener("pointerdown", drag);
      pair.addEventListener("pointermove", drag);
    }
    input.addEventListener("input", show);
    input.closest("label").hidden = false;
    show();
  }
})();
