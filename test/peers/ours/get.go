package main

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// loader is one machine that fetches its files over HTTP, one after the other on one connection.
type loader struct {
	client http.Client
	base   string
	part   int64 // bytes of a range; 0 fetches files whole, after a HEAD for their size
	buf    []byte
}

// get loads an HTTP server with machines that all begin at once, each with its own base URL, and prints
// the throughput, when the last one was done, and how many bytes the server sent in all. One fetch before
// that is checked against the files' content, and counted only among those bytes; the others are checked
// by their length.
//
// UEFI asks for the size with HEAD and then for the whole (UEFI 2.10 section 24.7.3.1); iPXE reads a disk
// image with ranges of what the BIOS asks for at once, at most 127 sectors (INT 13h, function 42h).
func get(ctx context.Context, args []string) error {
	set := flag.NewFlagSet("get", flag.ExitOnError)
	list := set.String("list", "", "file of base URLs, one a line; they are taken in turns")
	root := set.String("root", "", "directory of what is served")
	names := set.String("files", "kernel,initrd/0", "to fetch, in this order")
	part := set.Int64("range", 0, "bytes of a range; 0: whole files")
	clients := set.Int("clients", 1, "at once")
	rounds := set.Int("n", 1, "times that each fetches all")
	_ = set.Parse(args) // it exits
	text, err := os.ReadFile(*list)
	if err != nil {
		return err
	}
	bases := strings.Fields(string(text))
	if len(bases) == 0 {
		return fmt.Errorf("%s is empty", *list)
	}
	files := strings.Split(*names, ",")
	var each int64
	check := newLoader(bases[0], *part)
	for _, name := range files {
		want, err := os.ReadFile(filepath.Join(*root, name))
		if err != nil {
			return err
		}
		h := sha256.New()
		n, err := check.fetch(ctx, name, h)
		if err != nil || n != int64(len(want)) || [32]byte(h.Sum(nil)) != sha256.Sum256(want) {
			return fmt.Errorf("%s: %d bytes, of %d: %w", name, n, len(want), err)
		}
		each += n
	}
	check.client.CloseIdleConnections()
	g, ctx := errgroup.WithContext(ctx)
	begin := time.Now()
	for i := range *clients {
		g.Go(func() error {
			l := newLoader(bases[i%len(bases)], *part)
			defer l.client.CloseIdleConnections()
			for range *rounds {
				var n int64
				for _, name := range files {
					k, err := l.fetch(ctx, name, io.Discard)
					if err != nil {
						return err
					}
					n += k
				}
				if n != each {
					return fmt.Errorf("%d bytes, of %d", n, each)
				}
			}
			return nil
		})
	}
	err = g.Wait()
	last := time.Since(begin)
	total := float64(*clients**rounds) * float64(each)
	fmt.Printf("mb_s=%.1f last_ms=%.1f bytes=%.0f\n", total/last.Seconds()/1e6, ms(last), total+float64(each))
	return err
}

func newLoader(base string, part int64) *loader {
	return &loader{base: base, part: part, buf: make([]byte, 256<<10),
		client: http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1, DisableCompression: true}}}
}

// fetch reads one file into w and returns its size.
func (l *loader) fetch(ctx context.Context, name string, w io.Writer) (int64, error) {
	size, err := l.ask(ctx, http.MethodHead, name, "", nil)
	if err != nil {
		return 0, err
	}
	if l.part == 0 {
		return l.ask(ctx, http.MethodGet, name, "", w)
	}
	var n int64
	for n < size {
		k, err := l.ask(ctx, http.MethodGet, name, fmt.Sprintf("bytes=%d-%d", n, min(n+l.part, size)-1), w)
		if err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}

// ask makes one request and returns the length of the answer, as received for GET and as told for HEAD.
func (l *loader) ask(ctx context.Context, method, name, part string, w io.Writer) (int64, error) {
	r, err := http.NewRequestWithContext(ctx, method, l.base+name, nil)
	if err != nil {
		return 0, err
	}
	want := http.StatusOK
	if part != "" {
		r.Header.Set("Range", part)
		want = http.StatusPartialContent
	}
	a, err := l.client.Do(r)
	if err != nil {
		return 0, err
	}
	defer a.Body.Close()
	if a.StatusCode != want {
		return 0, fmt.Errorf("%s %s: %s", method, name, a.Status)
	}
	if method == http.MethodHead {
		return a.ContentLength, nil
	}
	// Discard's own ReadFrom would read in small pieces.
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{a.Body}, l.buf)
	if err == nil && n != a.ContentLength {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
