// What a search of the site weighs: Sphinx's own numbers, but pages that help stand before lists of
// changes and of refusals, which hold every word there is.
const LAST = ["changelog", "errors", "papers"];
const FIRST = ["getting_started", "how_do_i", "recipes_training", "recipes_wrapping", "recipes_equations"];

var Scorer = {
  score: ([docname, , , , score]) =>
    score + (FIRST.includes(docname) ? 20 : 0) - (LAST.includes(docname) ? 1000 : 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
