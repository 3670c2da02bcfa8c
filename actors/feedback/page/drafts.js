// What was typed and set on an item but not sent, for when the page is loaded again or a judgement is taken back.
const SHELF = "polyphony.drafts";
const MOST_KEPT = 8;

function read() {
  try {
    return new Map(JSON.parse(sessionStorage.getItem(SHELF)) ?? []);
  } catch {
    return new Map(); // no storage in this browser, or not ours
  }
}

const drafts = read();

/** Keeps `draft` for a presentation; `sent` are the notes that the server already has. */
export function keep(presentation, draft) {
  drafts.set(presentation, { ...drafts.get(presentation), ...draft });
  while (drafts.size > MOST_KEPT) drafts.delete(drafts.keys().next().value);
  try {
    sessionStorage.setItem(SHELF, JSON.stringify([...drafts]));
  } catch {
    // Full or forbidden: the drafts live on in memory.
  }
}

export const draftOf = (presentation) => drafts.get(presentation);

/** Forgets all of them, as when another rater logs in. */
export function forget() {
  drafts.clear();
  try {
    sessionStorage.removeItem(SHELF);
  } catch {
    // There is no storage to clear.
  }
}
