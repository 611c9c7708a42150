// Size limits of what a page loads: minified, gzipped, with eventsource-parser. What is loaded
// only when it is needed (tabs that share, polling, failures, loops) is not part of the core.
const modifyEsbuildConfig = (config) => ({ ...config, format: "esm" });

export default [
  {
    name: "core",
    path: "dist/index.js",
    limit: "8192 B",
    gzip: true,
    ignore: ["./share.js", "./together.js", "./poll.js", "./diagnose.js", "./loop.js"],
    modifyEsbuildConfig,
  },
  {
    name: "core, with several jobs on a page",
    path: "dist/index.js",
    limit: "12.3 kB",
    gzip: true,
    ignore: ["./share.js", "./poll.js", "./diagnose.js", "./loop.js"],
    modifyEsbuildConfig,
  },
  {
    name: "react",
    path: "dist/react.js",
    limit: "1536 B",
    gzip: true,
    ignore: ["react", "./index.js"],
    modifyEsbuildConfig,
  },
  ...["vue", "svelte", "solid"].map((name) => ({
    name,
    path: `dist/${name}.js`,
    limit: "1536 B",
    gzip: true,
    ignore: ["vue", "solid-js", "./index.js"],
    modifyEsbuildConfig,
  })),
  { name: "element", path: "dist/element.js", limit: "5 kB", gzip: true, ignore: ["./index.js"], modifyEsbuildConfig },
  {
    name: "/jobcast.js, with all of it",
    path: "../src/http/page/jobcast.js",
    limit: "14.3 kB",
    gzip: true,
    modifyEsbuildConfig,
  },
];
