package main

import (
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/orchestrator/topology"
)

// maxFile is the loader's own limit; more is refused before it is read.
const maxFile = 4 << 20

// readFiles collects the YAML files named, and those in folders named, in name order. "-" is standard
// input.
func readFiles(ctx context.Context, paths []string) ([]api.File, error) {
	var out []api.File
	add := func(name string, open func() (io.ReadCloser, error)) error {
		b, err := readWhole(ctx, name, open)
		out = append(out, api.File{Name: name, Data: string(b)})
		return err
	}
	file := func(path string) error {
		return add(path, func() (io.ReadCloser, error) { return os.Open(path) })
	}
	for _, p := range paths {
		if p == "-" {
			if err := add("standard input", func() (io.ReadCloser, error) { return os.Stdin, nil }); err != nil {
				return nil, err
			}
			continue
		}
		info, err := os.Stat(p)
		if err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, What: "read topology", Err: err, Next: "name a YAML file or a folder"}
		}
		if !info.IsDir() {
			if err := file(p); err != nil {
				return nil, err
			}
			continue
		}
		err = filepath.WalkDir(p, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && (strings.HasSuffix(path, ".yaml") || strings.HasSuffix(path, ".yml")) {
				return file(path)
			}
			return err
		})
		if err != nil {
			return nil, fault.Wrap(err, "read topology", p)
		}
	}
	if len(out) == 0 {
		return nil, &fault.Error{Kind: fault.Invalid, What: "no YAML files in " + strings.Join(paths, ", ")}
	}
	return out, nil
}

// readWhole reads one file. A pipe that nobody writes to, or a terminal that nobody types at, blocks in
// the kernel: then ctx ends the wait, and the file is left to the end of the process.
func readWhole(ctx context.Context, name string, open func() (io.ReadCloser, error)) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		f, err := open()
		if err != nil {
			done <- result{nil, err}
			return
		}
		b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
		_ = f.Close()
		done <- result{b, err}
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-done:
		if r.err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, What: "read topology", Err: r.err}
		}
		if len(r.b) > maxFile {
			return nil, &fault.Error{Kind: fault.Invalid, Where: name, What: "larger than 4 MiB", Next: "split it into several files"}
		}
		return r.b, nil
	}
}

// load parses and validates files. Nothing declared is an error: a wrong path must not pass for a valid
// topology.
func load(files []api.File) (*topology.Topology, error) {
	in := make([]topology.File, len(files))
	for i, f := range files {
		in[i] = topology.File{Name: f.Name, Data: []byte(f.Data)}
	}
	t, err := topology.Load(in)
	if err == nil && t.Len() == 0 {
		err = &fault.Error{Kind: fault.Invalid, Where: files[0].Name, What: "nothing is declared here", Next: "name the files of the topology"}
	}
	return t, err
}
