// Requests for Jobcast are passed on to a running one: `jobcast demo` or `jobcast serve`.
const target = process.env.JOBCAST ?? "http://127.0.0.1:8080";

export default {
  server: { proxy: { "/runner-jobs": { target } } },
  // jobcast-client is linked here, and its own node_modules hold a second React for its tests.
  resolve: { dedupe: ["react", "react-dom"] },
};
