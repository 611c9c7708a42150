// Types of terminal.js, which is built from these sources.
export * from "../../../client/src/terminal.js";
