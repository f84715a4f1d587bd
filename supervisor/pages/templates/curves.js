"use strict";
(() => {
  const told = JSON.parse(document.getElementById("data").textContent);
  const drawn = [];

  const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  // Restarts are lines, and steps that were done again are shaded, below the curve.
  const restarts = () => ({hooks: {drawClear: [u => {
    const {ctx, bbox} = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.fillStyle = ctx.strokeStyle = colour("bad");
    ctx.lineWidth = devicePixelRatio;
    for (const one of told.restarts) {
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

  const axis = size => ({
    stroke: colour("quiet"), font: "12px system-ui, sans-serif", size,
    grid: {stroke: colour("line"), width: 1}, ticks: {stroke: colour("line"), width: 1},
  });

  const draw = curve => {
    const place = document.getElementById(curve.id);
    const width = Math.max(280, place.clientWidth || 280);
    const show = value => value == null ? "–" : +value.toPrecision(5) + (curve.unit ? " " + curve.unit : "");
    const line = {stroke: colour("curve"), width: 1.5, spanGaps: true, points: {show: curve.x.length < 60}};
    const series = [{label: "step"}, {...line, label: curve.name, value: (u, value) => show(value)}];
    const data = [curve.x, curve.y];
    if (curve.lost) {
      series.push({...line, stroke: colour("lost"), dash: [4, 3], label: "done again later", value: (u, value) => show(value)});
      data.push(curve.lost);
    }
    const options = {
      width, height: width < 500 ? 200 : 240, series, plugins: [restarts()],
      scales: {x: {time: false}}, axes: [axis(34), axis(64)],
      cursor: {points: {size: 6}, sync: {key: "steps"}},
    };
    drawn.push(new uPlot(options, data, place));
  };

  const drawAll = () => {
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
  // Paper is white, whatever the screen is.
  matchMedia("print").addEventListener("change", drawAll);
})();
