package engine

import (
	"log/slog"
	"os"

	"go.temporal.io/server/common/log/tag"
)

// logger passes the engine's errors on to slog and drops the rest: its own warnings are written for
// people who run a cluster.
type logger struct{ to *slog.Logger }

func (logger) Debug(string, ...tag.Tag) {}
func (logger) Info(string, ...tag.Tag)  {}
func (logger) Warn(string, ...tag.Tag)  {}

func (l logger) Error(msg string, tags ...tag.Tag)  { l.to.Error("engine: "+msg, attrs(tags)...) }
func (l logger) DPanic(msg string, tags ...tag.Tag) { l.to.Error("engine: "+msg, attrs(tags)...) }

func (l logger) Panic(msg string, tags ...tag.Tag) {
	l.to.Error("engine: "+msg, attrs(tags)...)
	panic(msg)
}

func (l logger) Fatal(msg string, tags ...tag.Tag) {
	l.to.Error("engine: "+msg, attrs(tags)...)
	os.Exit(1)
}

func attrs(tags []tag.Tag) []any {
	out := make([]any, 0, 2*len(tags))
	for _, t := range tags {
		out = append(out, t.Key(), t.Value())
	}
	return out
}
