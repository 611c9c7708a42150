// @ts-nocheck: TypeScript reads no components.
import { mount, unmount } from "svelte";
import Job from "./Job.svelte";

const component = mount(Job, { target: document.getElementById("root") });
window.binding = { show: component.show, showAll: component.showAll, leave: () => unmount(component) };
