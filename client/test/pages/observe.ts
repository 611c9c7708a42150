import "./leftovers.js";
import { Observer } from "../support/observe.js";

window.observers = [];
window.observe = (jobs, options) => window.observers.push(new Observer(jobs, options)) - 1;
