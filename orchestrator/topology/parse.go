package topology

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Limits on what is read. They stop hostile input long before it costs memory or stack.
const (
	MaxFileBytes = 4 << 20 // of one file
	MaxDepth     = 32      // of nested maps and lists
	MaxDocuments = 20_000  // of one file
	maxTokens    = 10_000  // of one document; the parser's time grows with their square
	maxRun       = 512     // of one character in a row; the lexer's time grows with its square
	maxErrors    = 200     // reported of one file
)

// parseFile splits a file at its document markers and reads each document by itself, so that a syntax
// error in one does not hide those of the others. A marker at the start of a line always ends a document,
// even inside quotes or a block scalar (YAML 1.2.2, section 9.1.2), so the split needs no parser.
func parseFile(f File, report func(Error)) []*node {
	text, ok := cleanText(f, report)
	if !ok {
		return nil
	}
	var docs []*node
	start, lines := 0, strings.Split(text, "\n")
	count := 0
	flush := func(end int) bool {
		chunk := lines[start:end]
		if blank(chunk) {
			return true
		}
		if count++; count > MaxDocuments {
			report(Error{File: f.Name, Line: start + 1, Column: 1, Problem: fmt.Sprintf("more than %d documents", MaxDocuments), Hint: "split the file"})
			return false
		}
		if root := parseDocument(f.Name, strings.Join(chunk, "\n"), start, report); root != nil {
			docs = append(docs, root)
		}
		return true
	}
	for i, l := range lines {
		if !marker(l) {
			continue
		}
		if !flush(i) {
			return docs
		}
		start = i
		lines[i] = "   " + l[3:] // what follows a marker on its line belongs to the document
	}
	flush(len(lines))
	return docs
}

func marker(l string) bool {
	if !strings.HasPrefix(l, "---") && !strings.HasPrefix(l, "...") {
		return false
	}
	return len(l) == 3 || l[3] == ' ' || l[3] == '\t'
}

func blank(lines []string) bool {
	for _, l := range lines {
		if l = strings.TrimSpace(l); l != "" && l[0] != '#' {
			return false
		}
	}
	return true
}

// cleanText checks size and encoding, drops a byte order mark and makes all line ends one.
func cleanText(f File, report func(Error)) (string, bool) {
	fail := func(line, col int, problem, hint string) (string, bool) {
		report(Error{File: f.Name, Line: line, Column: col, Problem: problem, Hint: hint})
		return "", false
	}
	if len(f.Data) > MaxFileBytes {
		return fail(0, 0, fmt.Sprintf("the file has %d bytes, more than %d", len(f.Data), MaxFileBytes), "split it into several files")
	}
	text := strings.TrimPrefix(string(f.Data), "\ufeff")
	text = strings.ReplaceAll(text, "\r\n", "\n")
	line, col, run := 1, 0, 0
	var before rune
	indent, tab := true, 0 // tab: column of the first tab of the indentation
	for i, r := range text {
		col++
		if run++; r != before || r == '\n' {
			before, run = r, 1
		}
		switch {
		case r == '\n':
			line, col, indent, tab = line+1, 0, true, 0
			continue
		case r == utf8.RuneError:
			if _, size := utf8.DecodeRuneInString(text[i:]); size == 1 {
				return fail(line, col, "the text is not UTF-8", "save the file as UTF-8")
			}
		case control(r):
			return fail(line, col, fmt.Sprintf("the control character U+%04X", r), "remove it")
		case run > maxRun:
			return fail(line, col, fmt.Sprintf("more than %d times %q in a row", maxRun, r), "")
		}
		switch {
		case indent && r == '\t' && tab == 0:
			tab = col
		case indent && r != ' ' && r != '\t':
			if indent = false; tab > 0 && r != '#' {
				return fail(line, tab, "a tab in the indentation", "use spaces")
			}
		}
	}
	return text, true
}

// control reports characters that have no place in a name or a line: C0 and C1 controls, line and
// paragraph separators, bidirectional overrides, a byte order mark inside the text.
func control(r rune) bool {
	switch {
	case r < 0x20 && r != '\n' && r != '\t', r >= 0x7f && r < 0xa0, r == 0x2028, r == 0x2029,
		r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0xfeff:
		return true
	}
	return false
}

// parseDocument reads one document that begins after the given number of lines.
func parseDocument(file, text string, above int, report func(Error)) (root *node) {
	fail := func(line, col int, problem, hint string) {
		report(Error{File: file, Line: above + max(line, 1), Column: max(col, 1), Problem: problem, Hint: hint})
	}
	defer func() { // a hole in the YAML library is an error in one document, not the end of the server
		if r := recover(); r != nil {
			root = nil
			fail(1, 1, fmt.Sprintf("the YAML cannot be read: %v", r), "")
		}
	}()
	tokens := lexer.Tokenize(text)
	if !allowed(tokens, fail) {
		return nil
	}
	if len(tokens) > maxTokens {
		t := tokens[maxTokens]
		fail(t.Position.Line, t.Position.Column, fmt.Sprintf("the document has more than %d words and marks", maxTokens), "one document is one object: put --- between objects")
		return nil
	}
	parsed, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		line, col, problem := syntaxError(err)
		fail(line, col, "not YAML: "+problem, "")
		return nil
	}
	c := converter{fail: fail, above: above, ok: true}
	for _, d := range parsed.Docs {
		if d.Body == nil || d.Body.Type() == ast.CommentType {
			continue
		}
		if root != nil {
			t := d.Body.GetToken()
			fail(t.Position.Line, t.Position.Column, "not YAML: a second value in one document", "put --- between documents")
			return nil
		}
		root = c.convert(d.Body, 1)
	}
	if !c.ok {
		return nil
	}
	if root == nil {
		fail(1, 1, "not YAML: there is text but no value", "")
	}
	return root
}

// syntaxError takes the place and the message out of a library error.
func syntaxError(err error) (line, col int, problem string) {
	var e yaml.Error
	if !errors.As(err, &e) {
		first, _, _ := strings.Cut(err.Error(), "\n")
		return 1, 1, clip(first)
	}
	if t := e.GetToken(); t != nil && t.Position != nil {
		line, col = t.Position.Line, t.Position.Column
	}
	return line, col, e.GetMessage()
}

// allowed refuses, before anything recursive sees them, the parts of YAML that a topology has no use for
// and that bombs are made of, and bounds the nesting that needs no indentation.
func allowed(tokens token.Tokens, fail func(line, col int, problem, hint string)) bool {
	ok, flow, entries, line := true, 0, 0, 0
	refuse := func(t *token.Token, problem, hint string) {
		ok = false
		fail(t.Position.Line, t.Position.Column, problem, hint)
	}
	for _, t := range tokens {
		if t.Position.Line != line {
			line, entries = t.Position.Line, 0
		}
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			refuse(t, "anchors, aliases and merge keys are refused", "write the value out")
		case token.TagType:
			refuse(t, "tags are refused", "remove "+clip(t.Value))
		case token.DirectiveType:
			refuse(t, "directives are refused", "remove the line")
		case token.MappingKeyType:
			refuse(t, "complex keys are refused", "write key: value")
		case token.SequenceEntryType:
			entries++
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow--
		case token.InvalidType:
			refuse(t, "not YAML: "+t.Error, "")
		}
		if flow > MaxDepth || entries > MaxDepth {
			refuse(t, fmt.Sprintf("nested deeper than %d", MaxDepth), "")
			return false
		}
		if !ok && t.Type == token.InvalidType {
			return false
		}
	}
	return ok
}
