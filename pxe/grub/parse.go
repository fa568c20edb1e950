package grub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// Limits of a configuration that is read.
const (
	MaxConfig = 64 << 10
	maxWords  = 1024
	maxDepth  = 8
	maxRounds = 4096 // of one loop: more than an hour of asking a server that does not answer
)

// Statement is a command; or, with a Body, a command on whose success the body is run: once, or for a
// Loop again and again.
type Statement struct {
	Name string
	Args []string
	Body []Statement
	Loop bool
}

// Parse reads a configuration. cmdpath is what $cmdpath stands for, the one variable it knows. What
// GRUB can do beyond the commands of this package is refused with fault.Unsupported, what is malformed
// or too large with fault.Invalid.
func Parse(config []byte, cmdpath string) ([]Statement, error) {
	if len(config) > MaxConfig {
		return nil, fault.Newf(fault.Invalid, "configuration has more than %d bytes", MaxConfig)
	}
	words, err := split(config, cmdpath)
	if err != nil {
		return nil, err
	}
	p := &parser{words: words}
	out, err := p.statements("", 0)
	return out, err
}

// word is one word; a separator is an unquoted ";", for a line's end as well.
type word struct {
	text   string
	quoted bool
}

func (w word) is(s string) bool { return !w.quoted && w.text == s }

const separator = ";"

// split makes words of text.
func split(b []byte, cmdpath string) ([]word, error) {
	var out []word
	for len(b) > 0 {
		if len(out) > maxWords {
			return nil, fault.Newf(fault.Invalid, "more than %d words", maxWords)
		}
		switch c := b[0]; {
		case c == ' ' || c == '\t' || c == '\r':
			b = b[1:]
		case c == '\n' || c == ';':
			out, b = append(out, word{text: separator}), b[1:]
		case c == '#':
			i := bytes.IndexByte(b, '\n')
			if i < 0 {
				i = len(b)
			}
			b = b[i:]
		case c == '\'' || c == '"':
			i := bytes.IndexByte(b[1:], c)
			if i < 0 {
				return nil, fault.New(fault.Invalid, "a quotation has no end")
			}
			text, err := expand(string(b[1:1+i]), c, cmdpath)
			if err != nil {
				return nil, err
			}
			if out, b = append(out, word{text, true}), b[i+2:]; len(b) > 0 && !bytes.ContainsRune([]byte(" \t\r\n;"), rune(b[0])) {
				return nil, fault.New(fault.Unsupported, "a word of several quotations")
			}
		default:
			n := len(b) - len(bytes.TrimLeft(b, pathRunes))
			if n == 0 {
				return nil, fault.Newf(fault.Unsupported, "byte %#02x outside a quotation", c)
			}
			out, b = append(out, word{text: string(b[:n])}), b[n:]
		}
	}
	return out, nil
}

// expand gives what a quotation stands for; between double quotes $cmdpath is expanded at its start.
func expand(text string, quote byte, cmdpath string) (string, error) {
	for i := 0; i < len(text); i++ {
		if text[i] < ' ' || text[i] > '~' {
			return "", fault.Newf(fault.Invalid, "byte %#02x in a quotation", text[i])
		}
	}
	if quote == '\'' {
		return text, nil
	}
	rest, ok := strings.CutPrefix(text, "$cmdpath/")
	if strings.ContainsAny(rest, "$\\`") {
		return "", fault.Newf(fault.Unsupported, "variable in %.80q", text)
	}
	if ok {
		return cmdpath + "/" + rest, nil
	}
	return text, nil
}

type parser struct {
	words []word
}

func (p *parser) next() (word, bool) {
	if len(p.words) == 0 {
		return word{}, false
	}
	w := p.words[0]
	p.words = p.words[1:]
	return w, true
}

// statements reads up to the word that ends them; "" is the end of the text.
func (p *parser) statements(end string, depth int) ([]Statement, error) {
	if depth > maxDepth {
		return nil, fault.Newf(fault.Invalid, "more than %d statements in one another", maxDepth)
	}
	var out []Statement
	for {
		w, ok := p.next()
		switch {
		case !ok && end != "":
			return nil, fault.New(fault.Invalid, "no "+end)
		case !ok:
			return out, nil
		case w.is(separator):
		case end != "" && w.is(end):
			return out, nil
		case w.is("if"), w.is("while"):
			s, err := p.conditional(w.text == "while", depth)
			if err != nil {
				return nil, err
			}
			out = append(out, s)
		default:
			s, err := p.command(w)
			if err != nil {
				return nil, err
			}
			out = append(out, s)
		}
	}
}

// conditional reads the rest of "if COMMAND; then ... fi" and "while COMMAND; do ... done".
func (p *parser) conditional(loop bool, depth int) (Statement, error) {
	begin, end := "then", "fi"
	if loop {
		begin, end = "do", "done"
	}
	first, ok := p.next()
	if !ok {
		return Statement{}, fault.New(fault.Invalid, "no condition")
	}
	s, err := p.command(first)
	if err != nil {
		return Statement{}, err
	}
	if w, ok := p.next(); !ok || !w.is(separator) {
		return Statement{}, fault.New(fault.Invalid, "no end of the condition")
	}
	if w, ok := p.next(); !ok || !w.is(begin) {
		return Statement{}, fault.New(fault.Invalid, "no "+begin)
	}
	s.Loop = loop
	if s.Body, err = p.statements(end, depth+1); err == nil && len(s.Body) == 0 {
		err = fault.Newf(fault.Invalid, "nothing between %s and %s", begin, end)
	}
	return s, err
}

// command reads up to a separator, and leaves that.
func (p *parser) command(name word) (Statement, error) {
	if name.quoted || !known(name.text) {
		return Statement{}, fault.Newf(fault.Unsupported, "command %.40q", name.text)
	}
	s := Statement{Name: name.text}
	for len(p.words) > 0 && !p.words[0].is(separator) {
		w, _ := p.next()
		s.Args = append(s.Args, w.text)
	}
	return s, nil
}

// known are the commands that this package writes, and the few a person adds by hand.
func known(name string) bool {
	switch name {
	case "true", "source", "sleep", "linux", "initrd", "chainloader", "boot", "exit", "echo":
		return true
	}
	return false
}

// ErrStop ends Run: the machine has left GRUB for what was booted.
var ErrStop = errors.New("left GRUB")

// ErrExit ends Run: GRUB has handed back to the firmware.
var ErrExit = errors.New("GRUB handed back to the firmware")

// Run does what a configuration says: do is called for each command but true and exit, and says by its
// error whether that succeeded. As in GRUB, a command that fails ends nothing. Run returns nil at the
// end of the configuration, ErrExit, or what do returned if that is ErrStop or ErrExit.
func Run(ctx context.Context, config []Statement, do func(context.Context, Statement) error) error {
	for _, s := range config {
		for n := 0; ; n++ {
			if n == maxRounds {
				return fault.New(fault.Timeout, "the configuration goes round in circles")
			}
			done, err := step(ctx, s, do)
			if err != nil {
				return err
			}
			if done || !s.Loop {
				break
			}
		}
	}
	return nil
}

// step runs a statement once; done says that its command failed, which ends a loop.
func step(ctx context.Context, s Statement, do func(context.Context, Statement) error) (done bool, err error) {
	if err := ctx.Err(); err != nil {
		return true, err
	}
	switch s.Name {
	case "true":
	case "exit":
		return true, ErrExit
	default:
		err := do(ctx, s)
		if errors.Is(err, ErrStop) || errors.Is(err, ErrExit) {
			return true, err
		}
		if err != nil {
			return true, nil
		}
	}
	return false, Run(ctx, s.Body, do)
}

func (s Statement) String() string { return fmt.Sprint(s.Name, " ", strings.Join(s.Args, " ")) }
