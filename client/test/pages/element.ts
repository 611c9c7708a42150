import "../../src/element.js";

declare global {
  interface Window {
    violations: string[];
  }
}

window.violations = [];
document.addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) =>
  window.violations.push(`${violatedDirective} ${blockedURI}`),
);
