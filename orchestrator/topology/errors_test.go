package topology_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rerack.dev/rerack/orchestrator/topology"
)

var update = flag.Bool("update", false, "rewrite golden files")

// errorCase is one file of testdata/errors: edits of testdata/base.yaml and the exact errors they make.
// Sections begin with a line "== replace", "== with", "== append" or "== want".
type errorCase struct {
	edits  [][2]string
	append string
	head   string // the file up to the want section
	want   string
}

func parseErrorCase(t *testing.T, text string) errorCase {
	t.Helper()
	var c errorCase
	section := ""
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "== "); ok {
			section = strings.TrimSpace(name)
			if section == "replace" {
				c.edits = append(c.edits, [2]string{})
			}
			if section != "want" {
				c.head += line
			}
			continue
		}
		switch section {
		case "replace":
			c.edits[len(c.edits)-1][0] += line
		case "with":
			c.edits[len(c.edits)-1][1] += line
		case "append":
			c.append += line
		case "want":
			c.want += line
			continue
		}
		c.head += line
	}
	return c
}

func (c errorCase) apply(t *testing.T, base string) string {
	t.Helper()
	for _, e := range c.edits {
		if strings.Count(base, e[0]) != 1 {
			t.Fatalf("the text to replace occurs %d times:\n%s", strings.Count(base, e[0]), e[0])
		}
		base = strings.Replace(base, e[0], e[1], 1)
	}
	return base + c.append
}

func TestErrors(t *testing.T) {
	base, err := os.ReadFile("testdata/base.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := topology.Load([]topology.File{{Name: "dc.yaml", Data: base}}); err != nil {
		t.Fatalf("the base is wrong itself:\n%v", err)
	}
	cases, err := filepath.Glob("testdata/errors/*.txt")
	if err != nil || len(cases) < 80 {
		t.Fatalf("%d cases found, want at least 80 (%v)", len(cases), err)
	}
	for _, file := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c := parseErrorCase(t, string(text))
			_, err = topology.Load([]topology.File{{Name: "dc.yaml", Data: []byte(c.apply(t, string(base)))}})
			if err == nil {
				t.Fatal("loads without an error")
			}
			var all topology.Errors
			if !errors.As(err, &all) {
				t.Fatalf("the error is a %T", err)
			}
			got := err.Error() + "\n"
			if *update {
				if err := os.WriteFile(file, []byte(c.head+"== want\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
}

// golden compares got with a file, or rewrites the file.
func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; run with -update and read the difference\n%s", file, got)
	}
}
