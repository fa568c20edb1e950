package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"rerack.dev/rerack/pxe/importer"
)

const (
	barWidth = 30
	redraw   = 100 * time.Millisecond
)

// progress counts what is written to it and, on a terminal, draws a bar.
type progress struct {
	w     io.Writer // nil: nobody watches
	total int64     // bytes; 0 when a source does not tell

	mu   sync.Mutex
	name string
	done int64
	at   time.Time // of the last drawing
}

func newProgress(w io.Writer, files []importer.File) *progress {
	p := &progress{}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.w = w
	}
	for _, f := range files {
		if p.total += f.Size; f.Size == 0 {
			p.total = 0
			break
		}
	}
	return p
}

func (p *progress) start(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.name = name
}

func (p *progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += int64(len(b))
	if now := time.Now(); p.w != nil && now.Sub(p.at) > redraw {
		p.at = now
		fmt.Fprintf(p.w, "\r\x1b[K%s", p.line())
	}
	return len(b), nil
}

// line is a name, a bar and how much.
func (p *progress) line() string {
	if p.total == 0 {
		return fmt.Sprintf("%-20.20s %s", p.name, sizeOf(p.done))
	}
	full := int(min(p.done, p.total) * barWidth / p.total)
	return fmt.Sprintf("%-20.20s [%s%s] %3d %% of %s", p.name, strings.Repeat("=", full), strings.Repeat(" ", barWidth-full),
		min(p.done, p.total)*100/p.total, sizeOf(p.total))
}

// end takes the bar away.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w != nil && p.done > 0 {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
