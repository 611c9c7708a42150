// jobcast-client: watches a job live. See README.md.

export { JobStream, type JobStreamState } from "./core.js";
export { JobStreamError } from "./error.js";
export type { AnyEvents, EventOf, JobEvent, JobStatus, Reset } from "./event.js";
export type { JobStreamOptions, RetryOptions } from "./options.js";
export { CONNECTING } from "./state.js";
