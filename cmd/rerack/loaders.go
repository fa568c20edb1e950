package main

import (
	"context"
	"log/slog"
	"os"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/images"
	"rerack.dev/rerack/pxe/loaders"
)

// importLoaders takes the boot loaders that are there into the image store.
func importLoaders(ctx context.Context, folders []string, files *images.Store, log *slog.Logger) (map[string]pxe.Digest, error) {
	out := map[string]pxe.Digest{}
	for _, l := range loaders.All() {
		path := l.Find(folders...)
		if path == "" {
			level, next := slog.LevelInfo, "set --loaders"
			if l.Common {
				level = slog.LevelWarn
			}
			if l.Package != "" {
				next = "install the package " + l.Package + ", or set --loaders"
			}
			log.Log(ctx, level, "no network boot loader for some machines", "file", l.Name, "folders", strings.Join(folders, ","), "next", next)
			continue
		}
		d, err := importLoader(ctx, l.Name, path, files)
		if err != nil {
			return nil, err
		}
		out[l.Name] = d
	}
	return out, nil
}

func importLoader(ctx context.Context, name, path string, files *images.Store) (pxe.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", &fault.Error{Kind: fault.Invalid, What: "read boot loader", Err: err}
	}
	defer f.Close()
	return files.Import(ctx, name, f, "")
}
