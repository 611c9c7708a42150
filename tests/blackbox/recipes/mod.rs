//! The recipes for other programs' tables, each tried on tables of that shape, with the very file that an operator takes.

mod woodpecker;

use std::path::Path;

/// The path of a file of a recipe.
fn file_of(recipe: &str, name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes").join(recipe).join(name);
    assert!(path.exists(), "{}", path.display());
    path.display().to_string()
}
