package topology

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Error is one thing that is wrong with a declared topology: where, what, and what would be right.
type Error struct {
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`   // from 1; 0 when the topology was not read from text
	Column  int    `json:"column,omitempty"` // from 1, in characters
	Kind    Kind   `json:"kind,omitempty"`   // of the object, when it is known
	Name    string `json:"name,omitempty"`   // of the object, when it is known
	Path    string `json:"path,omitempty"`   // "spec.nics[1].mac"
	Problem string `json:"problem"`
	Hint    string `json:"hint,omitempty"` // what would be right
}

// Error renders one line: file:line:col: Kind name: path: problem (hint).
func (e *Error) Error() string {
	var b strings.Builder
	if at := e.at(); at != "" {
		b.WriteString(at + ": ")
	}
	if e.Kind != "" {
		b.WriteString(strings.TrimSpace(string(e.Kind)+" "+e.Name) + ": ")
	}
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	b.WriteString(e.Problem)
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

func (e *Error) at() string {
	out := e.File
	if e.Line > 0 {
		out += ":" + strconv.Itoa(e.Line) + ":" + strconv.Itoa(e.Column)
	}
	return strings.TrimPrefix(out, ":")
}

// Errors is everything that is wrong, in the order of files and lines.
type Errors []Error

// Error renders one line each.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i := range es {
		lines[i] = es[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes each error reachable by errors.As.
func (es Errors) Unwrap() []error {
	out := make([]error, len(es))
	for i := range es {
		out[i] = &es[i]
	}
	return out
}

// orNil is the errors sorted and without repetitions, or nil when there is none.
func (es Errors) orNil() error {
	if len(es) == 0 {
		return nil
	}
	slices.SortStableFunc(es, func(a, b Error) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Problem, b.Problem))
	})
	return slices.Compact(es)
}

// longestSuggested bounds the work of a suggestion on hostile input.
const longestSuggested = 64

// didYouMean proposes the candidate nearest to word, or lists them all when they are few and none is near.
func didYouMean(word string, candidates []string) string {
	if best := nearest(word, candidates); best != "" {
		return "did you mean " + strconv.Quote(best) + "?"
	}
	const few = 12
	if len(candidates) == 0 || len(candidates) > few {
		return ""
	}
	sorted := slices.Sorted(slices.Values(candidates))
	return "one of: " + strings.Join(sorted, ", ")
}

// nearest is the candidate of the least edit distance, if that is at most a third of the word's length.
// A difference in upper and lower case alone is always near.
func nearest(word string, candidates []string) string {
	if len(word) > longestSuggested {
		return ""
	}
	best, bestAt := "", max(1, len(word)/3)+1
	for _, c := range candidates {
		if strings.EqualFold(c, word) {
			return c
		}
		if len(c) > longestSuggested || abs(len(c)-len(word)) >= bestAt+1 {
			continue
		}
		if d := distance(word, c); d < bestAt || d == bestAt && best != "" && c < best {
			best, bestAt = c, d
		}
	}
	return best
}

func abs(n int) int { return max(n, -n) }

// distance counts the single-byte insertions, deletions, replacements and neighbour swaps between a and b
// (optimal string alignment).
func distance(a, b string) int {
	before, above, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range above {
		above[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := above[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(above[j]+1, row[j-1]+1, replace)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, above, row = above, row, before
	}
	return above[len(b)]
}
