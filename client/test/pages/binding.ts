/** What the tests do with a page of a binding: its heading is the state, its list the events, its button connects anew. */
export interface Binding {
  show(jobId: string | null): void;
  leave(): void;
}

declare global {
  interface Window {
    binding: Binding;
  }
}

export const QUICK = { retry: { initialMs: 50, maxMs: 400 } };
