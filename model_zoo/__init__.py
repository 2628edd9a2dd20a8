"""Model packs that come with the package, one folder each: ``model.aeszpack``, ``card.md``, ``recipe.toml``."""
