// Types of jobcast.js, which is built from these sources.
export * from "../../../client/src/index.js";
