// Size limits of what a page loads: minified, gzipped, with eventsource-parser. Tabs load share.js only for `share: true`,
// so the core is measured without it.
const modifyEsbuildConfig = (config) => ({ ...config, format: "esm" });

export default [
  { name: "core", path: "dist/index.js", limit: "9.6 kB", gzip: true, ignore: ["./share.js"], modifyEsbuildConfig },
  {
    name: "react",
    path: "dist/react.js",
    limit: "1.5 kB",
    gzip: true,
    ignore: ["react", "./index.js"],
    modifyEsbuildConfig,
  },
  {
    name: "/jobcast.js, with sharing",
    path: "../src/http/page/jobcast.js",
    limit: "10.5 kB",
    gzip: true,
    modifyEsbuildConfig,
  },
];
