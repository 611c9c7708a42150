// What a page pays: minified and gzipped, with eventsource-parser. Sharing between tabs is loaded by those who ask for it.
const modifyEsbuildConfig = (config) => ({ ...config, format: "esm" });

export default [
  { name: "core", path: "dist/index.js", limit: "6 kB", gzip: true, ignore: ["./share.js"], modifyEsbuildConfig },
  {
    name: "react",
    path: "dist/react.js",
    limit: "1 kB",
    gzip: true,
    ignore: ["react", "./index.js"],
    modifyEsbuildConfig,
  },
  {
    name: "/jobcast.js, with sharing",
    path: "../src/http/page/jobcast.js",
    limit: "7 kB",
    gzip: true,
    modifyEsbuildConfig,
  },
];
