"use strict";
(() => {
  const about = JSON.parse(document.getElementById("since").textContent);
  const status = document.getElementById("live");
  const channel = new BroadcastChannel("supervise");
  const seen = new Set();
  let due = 0, loaded = Date.now(), stream = null, live = false;

  const said = text => { if (status.textContent !== text) status.textContent = text; };
  const turned = now => {
    live = now;
    said(now ? "live" : "not live: waiting for supervise web");
  };

  // The page as it is now, from the server, which has escaped all of it. Open details stay open.
  const load = async () => {
    due = 0;
    loaded = Date.now();
    try {
      const answer = await fetch(location.href, {cache: "no-store"});
      if (!answer.ok) return said(answer.status === 401 ? "not live: open the address of a new supervise web" : "not live: no answer");
      const now = new DOMParser().parseFromString(await answer.text(), "text/html");
      const open = [...document.querySelectorAll("details")].map(one => one.open);
      for (const part of ["header", "main"]) document.querySelector(part).replaceWith(now.querySelector(part));
      document.querySelectorAll("details").forEach((one, n) => { one.open = open[n] || false; });
      const data = document.getElementById("data");
      if (data) {
        data.textContent = now.getElementById("data").textContent;
        dispatchEvent(new Event("supervise"));
      }
      const state = document.querySelector("h1 .state");
      if (live) said("live" + (state ? ": " + state.textContent : ""));
    } catch { said("not live: supervise web does not answer"); }
  };
  // A page that nobody sees costs the machine nothing. It is read again when it is seen.
  let missed = false;
  document.addEventListener("visibilitychange", () => { if (!document.hidden && missed) soon(); });
  const soon = () => {
    missed = document.hidden;
    if (!due && !missed) due = setTimeout(load, Math.max(300, 1500 - (Date.now() - loaded)));
  };

  const heard = event => {
    const key = event.folder + " " + event.seq;
    if (seen.has(key)) return;
    if (seen.size > 10000) seen.clear();
    seen.add(key);
    if (!about.folder || about.folder === event.folder) soon();
  };
  channel.onmessage = ({data}) => {
    if (data.asks) { if (stream) channel.postMessage({live}); }
    else if ("live" in data) turned(data.live);
    else heard(data);
  };
  channel.postMessage({asks: true});

  // One stream a browser: the page that holds the lock has it, and tells the others. A stream that the browser gives up
  // (refused, after a restart of supervise web) gives the lock back: another page may be let in.
  const follow = () => new Promise(over => {
    const now = on => { turned(on); channel.postMessage({live}); };
    stream = new EventSource("/stream?since=" + encodeURIComponent(about.since));
    stream.addEventListener("told", message => {
      const event = JSON.parse(message.data);
      about.since = event.ts;
      channel.postMessage(event);
      heard(event);
    });
    stream.onopen = () => { now(true); soon(); };
    stream.onerror = () => {
      now(false);
      if (stream.readyState !== EventSource.CLOSED) return;
      stream = null;
      over();
    };
  });
  const ask = async () => {
    if (navigator.locks) await navigator.locks.request("supervise", follow);
    else await follow();
    setTimeout(ask, 5000);
  };
  ask();
  // Steps make no event.
  setInterval(() => {
    const state = document.querySelector(".state.running");
    if (state && Date.now() - loaded > 5000) soon();
  }, 1000);
})();
