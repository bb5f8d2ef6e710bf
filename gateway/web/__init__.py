"""HTTP: take, call one service, return. With `app` the only importer of Litestar."""
