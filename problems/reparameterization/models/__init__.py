"""Models with latent variables: an autoencoder of binary images, latent Dirichlet allocation."""
