"use strict";
(() => {
  let told;
  const drawn = [];

  const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  // Restarts are lines, and steps that were done again are shaded, below the curve.
  const restarts = curve => ({hooks: {drawClear: [u => {
    const {ctx, bbox} = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.fillStyle = ctx.strokeStyle = colour("bad");
    ctx.lineWidth = devicePixelRatio;
    for (const one of curve.own ? [] : told.restarts) {
      const from = u.valToPos(one.step, "x", true), until = u.valToPos(one.until, "x", true);
      ctx.globalAlpha = 0.15;
      if (until > from) ctx.fillRect(from, bbox.top, Math.max(until - from, 1), bbox.height);
      ctx.globalAlpha = 0.8;
      ctx.beginPath();
      ctx.moveTo(from, bbox.top);
      ctx.lineTo(from, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }]}});

  const axis = (size, values) => ({
    values,
    stroke: colour("quiet"), font: "12px system-ui, sans-serif", size,
    grid: {stroke: colour("line"), width: 1}, ticks: {stroke: colour("line"), width: 1},
  });

  const draw = curve => {
    const place = document.getElementById(curve.id);
    const width = Math.max(280, place.clientWidth || 280);
    const show = value => value == null ? "–" : +value.toPrecision(5) + (curve.unit ? " " + curve.unit : "");
    // A curve goes on over steps without a value, but not from one attempt's lost steps to another's.
    const gaps = (u, index, first, last) => {
      const [xs, ys] = [u.data[0], u.data[index]], found = [];
      let before = -1;
      for (let at = first; at <= last; at++) {
        if (ys[at] == null) continue;
        if (index > 1 && before >= 0 && curve.breaks.some(step => xs[before] <= step && step < xs[at]))
          found.push([u.valToPos(xs[before], "x", true), u.valToPos(xs[at], "x", true)]);
        before = at;
      }
      return found;
    };
    const points = {show: curve.x.length < 60, size: 4, fill: colour("paper")};
    const line = {stroke: colour("curve"), width: 1.5, gaps, points};
    const series = [{label: "step"}, {...line, label: curve.name, value: (u, value) => show(value)}];
    const data = [curve.x, curve.y];
    if (curve.lost) {
      series.push({...line, stroke: colour("lost"), dash: [4, 3], label: "done again later", value: (u, value) => show(value)});
      data.push(curve.lost);
    }
    const options = {
      width, height: width < 500 ? 200 : 240, series, plugins: [restarts(curve)],
      scales: {x: {time: false}},
      axes: [axis(34), axis(64, (u, splits) => splits.map(value => value == null ? "" : +value.toPrecision(4)))],
      cursor: {points: {size: 6}, sync: {key: curve.own ? curve.id : "steps"}},
    };
    drawn.push(new uPlot(options, data, place));
  };

  const drawAll = () => {
    told = JSON.parse(document.getElementById("data").textContent);
    while (drawn.length) drawn.pop().destroy();
    told.curves.forEach(draw);
  };

  drawAll();
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 150);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("supervise", drawAll);
  // Paper is white, whatever the screen is.
  matchMedia("print").addEventListener("change", drawAll);
})();
