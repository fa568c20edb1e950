package ipxe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// Limits of a script that is read.
const (
	MaxScript  = 64 << 10
	maxLines   = 256
	maxTokens  = 512
	maxLineLen = 16 << 10
	maxJumps   = 4096 // more than an hour of asking a server that does not answer
)

// When says on which result of the command before it a command runs.
type When uint8

const (
	Always  When = iota // first of its line
	Success             // after &&
	Failure             // after ||
)

// Command is one command with its arguments. A label is one too: its name starts with a colon.
type Command struct {
	When When
	Name string
	Args []string
}

func (c Command) String() string { return strings.Join(append([]string{c.Name}, c.Args...), " ") }

// commands are the ones the boot scripts of this package use, and the few a person adds by hand.
func known(name string) bool {
	switch name {
	case "dhcp", "set", "kernel", "initrd", "boot", "sanboot", "chain", "exit", "sleep", "echo", "imgfree", "goto":
		return true
	}
	return false
}

// IsScript reports whether a file is a script by how it begins.
func IsScript(b []byte) bool {
	return bytes.HasPrefix(b, []byte(magic+"\n")) || bytes.HasPrefix(b, []byte(magic+"\r\n"))
}

// Parse reads a script. It does not know settings: menus and ${...} are refused with fault.Unsupported,
// anything malformed or too large with fault.Invalid, and so is a goto to a label that is not there.
func Parse(script []byte) ([]Command, error) {
	if len(script) > MaxScript {
		return nil, fault.Newf(fault.Invalid, "script has more than %d bytes", MaxScript)
	}
	lines := bytes.Split(script, []byte("\n"))
	if len(lines) > maxLines {
		return nil, fault.Newf(fault.Invalid, "script has more than %d lines", maxLines)
	}
	if strings.TrimRight(string(lines[0]), " \t\r") != magic {
		return nil, fault.New(fault.Invalid, "script does not start with "+magic)
	}
	var out []Command
	for i, raw := range lines[1:] {
		cmds, err := parseLine(strings.TrimSuffix(string(raw), "\r"))
		if err != nil {
			return nil, fault.Wrap(err, "parse", fmt.Sprintf("line %d", i+2))
		}
		out = append(out, cmds...)
	}
	for _, c := range out {
		if c.Name == "goto" && label(out, c.Args) < 0 {
			return nil, fault.Newf(fault.Invalid, "no label for %q", c)
		}
	}
	return out, nil
}

// label is where a goto leads, or -1.
func label(cmds []Command, args []string) int {
	return slices.IndexFunc(cmds, func(c Command) bool { return len(args) == 1 && c.Name == ":"+args[0] })
}

func parseLine(line string) ([]Command, error) {
	if len(line) > maxLineLen {
		return nil, fault.Newf(fault.Invalid, "longer than %d bytes", maxLineLen)
	}
	for i := 0; i < len(line); i++ {
		if c := line[i]; c != '\t' && (c < ' ' || c > '~') {
			return nil, fault.Newf(fault.Invalid, "byte %#02x at column %d", c, i+1)
		}
	}
	fields := strings.Fields(line)
	if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
		return nil, nil
	}
	if len(fields) == 1 && len(fields[0]) > 1 && fields[0][0] == ':' {
		return []Command{{Name: fields[0]}}, nil
	}
	if len(fields) > maxTokens {
		return nil, fault.Newf(fault.Invalid, "more than %d words", maxTokens)
	}
	var out []Command
	cur := Command{When: Always}
	for _, f := range fields {
		switch {
		case f == "||" || f == "&&":
			if cur.Name == "" {
				return nil, fault.Newf(fault.Invalid, "no command before %q", f)
			}
			out = append(out, cur)
			cur = Command{When: Success}
			if f == "||" {
				cur.When = Failure
			}
		case strings.Contains(f, "${"):
			return nil, fault.Newf(fault.Unsupported, "setting in %q", f)
		case cur.Name == "":
			if !known(f) {
				return nil, fault.Newf(fault.Unsupported, "command %q", f)
			}
			cur.Name = f
		default:
			cur.Args = append(cur.Args, f)
		}
	}
	// A line may end in ||: then it does not fail.
	if cur.Name == "" && cur.When != Failure {
		return nil, fault.New(fault.Invalid, "no command after the last operator")
	}
	return append(out, cur), nil
}

// ErrStop ends Run without an error: the machine has left iPXE for what was booted.
var ErrStop = errors.New("left iPXE")

// ExitError is what Run returns when the script runs exit.
type ExitError struct{ Code int }

// gotoError is how a line ends that leads elsewhere.
type gotoError struct{ to int }

func (*gotoError) Error() string { return "goto" }

func (e *ExitError) Error() string { return fmt.Sprintf("script exits with %d", e.Code) }

// Run gives the commands to do in the order iPXE would: of a line, a command after || is passed over when the
// last one that was done succeeded, and one after && when that failed; the line goes on behind it (seen with
// iPXE 1.0.0+git-20190125: "echo a || echo b && echo c" says a and c). A line that fails ends the script. It returns nil after ErrStop, an *ExitError after exit, or the failure.
func Run(ctx context.Context, cmds []Command, do func(context.Context, Command) error) error {
	jumps := 0
	for i := 0; i < len(cmds); {
		end := i + 1
		for end < len(cmds) && cmds[end].When != Always {
			end++
		}
		var jump *gotoError
		switch err := runLine(ctx, cmds, cmds[i:end], do); {
		case errors.As(err, &jump):
			if jumps++; jumps > maxJumps {
				return fault.New(fault.Timeout, "script goes round in circles")
			}
			i = jump.to
		case errors.Is(err, ErrStop):
			return nil
		case err != nil:
			return err
		default:
			i = end
		}
	}
	return &ExitError{}
}

func runLine(ctx context.Context, all, line []Command, do func(context.Context, Command) error) error {
	var last error
	for i, c := range line {
		if i > 0 && (c.When == Success) != (last == nil) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case c.Name == "":
			return nil
		case c.Name == "exit":
			return exit(c.Args)
		case c.Name == "goto":
			return &gotoError{label(all, c.Args)}
		case c.Name[0] == ':':
			continue
		}
		last = do(ctx, c)
		if errors.Is(last, ErrStop) {
			return last
		}
	}
	return last
}

func exit(args []string) error {
	code := 0
	if len(args) > 0 {
		code, _ = strconv.Atoi(args[0]) // iPXE takes what it cannot read as 0
	}
	return &ExitError{Code: code}
}
