//! Fills the blanks of a script: `{crate}` is a word of that list, `{3..40}` and `{0.02..1.90}` are numbers, `{hex}` is
//! a short commit; `{=crate}` repeats the last word for `{crate}`.

use super::scripts::words;
use rand::Rng;
use rand::RngExt;
use rand::seq::SliceRandom;
use std::collections::HashMap;

/// Cards in random order; each comes once before one comes again.
pub struct Deck<T>(Vec<T>);

impl<T> Default for Deck<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Deck<T> {
    /// Draws a card; `None` only if there are no cards at all.
    pub fn draw(&mut self, rng: &mut impl Rng, all: impl FnOnce() -> Vec<T>) -> Option<T> {
        if self.0.is_empty() {
            self.0 = all();
            self.0.shuffle(rng);
        }
        self.0.pop()
    }
}

/// Words of one job, so that its lines agree with each other.
#[derive(Default)]
pub struct Words {
    /// Words that are fixed for the whole job.
    held: HashMap<&'static str, String>,
    /// Last word for each blank, for `{=name}`.
    last: HashMap<String, String>,
    decks: HashMap<String, Deck<&'static str>>,
}

impl Words {
    /// Fixes the word for `{name}` from now on.
    pub fn hold(&mut self, name: &'static str, word: String) {
        self.held.insert(name, word);
    }

    pub fn fill(&mut self, template: &str, rng: &mut impl Rng) -> String {
        let (mut text, mut rest) = (String::new(), template);
        while let Some((before, blank)) = rest.split_once('{')
            && let Some((name, behind)) = blank.split_once('}')
        {
            text.push_str(before);
            text.push_str(&self.word(name, rng));
            rest = behind;
        }
        text + rest
    }

    fn word(&mut self, name: &str, rng: &mut impl Rng) -> String {
        if let Some(held) = self.held.get(name) {
            return held.clone();
        }
        let fresh = name.trim_start_matches('=');
        if fresh != name
            && let Some(last) = self.last.get(fresh)
        {
            return last.clone();
        }
        let word = self.fresh(fresh, rng);
        self.last.insert(fresh.to_string(), word.clone());
        word
    }

    fn fresh(&mut self, name: &str, rng: &mut impl Rng) -> String {
        if let Some((low, high)) = name.split_once("..") {
            return number(low, high, rng);
        }
        if name == "hex" {
            return format!("{:07x}", rng.random_range(0x0100_0000..0x0fff_ffff_u32));
        }
        let deck = self.decks.entry(name.to_string()).or_default();
        deck.draw(rng, || words(name).to_vec()).unwrap_or_default().to_string()
    }
}

/// Picks a number with as many decimals as the upper bound has.
fn number(low: &str, high: &str, rng: &mut impl Rng) -> String {
    let (Ok(from), Ok(to)) = (low.parse::<f64>(), high.parse::<f64>()) else { return high.to_string() };
    let decimals = high.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    format!("{:.decimals$}", rng.random_range(from..=to))
}

#[cfg(test)]
mod tests {
    use super::super::scripts::SCRIPTS;
    use super::*;

    #[test]
    fn every_blank_of_every_script_can_be_filled() {
        for script in SCRIPTS {
            for step in script.steps {
                let lines = [step.first, step.lines, step.last, step.failure.lines].concat();
                for line in lines
                    .into_iter()
                    .chain(step.progress)
                    .chain([script.name])
                    .chain(script.branches.iter().chain(script.triggers).copied())
                {
                    let mut words = Words::default();
                    words.hold("branch", "main".into());
                    words.hold("commit", "0123456".into());
                    let marked = line.replace('{', "<{").replace('}', "}>");
                    let filled = words.fill(&marked, &mut rand::rng());
                    assert!(!filled.contains("<>") && !filled.contains('{'), "{line:?} became {filled:?}");
                }
            }
        }
    }
}
