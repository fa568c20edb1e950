package qemu

import (
	"bufio"
	"io"
	"os"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

const maxLine = 1 << 10 // of a console, in bytes

// console returns where a machine's serial console goes, nil for nowhere. It is read until the machine is off.
func (h *Host) console(vm string) (*os.File, error) {
	if h.cfg.Console == nil {
		return nil, nil
	}
	near, far, err := socketPair()
	if err != nil {
		return nil, fault.Wrap(err, "make a socket", "console of "+vm)
	}
	go func() {
		defer near.Close()
		readLines(near, func(line string) { h.cfg.Console(vm, line) })
	}()
	return far, nil
}

// readLines calls use with every line until the end.
func readLines(r io.Reader, use func(string)) {
	b := bufio.NewReaderSize(r, maxLine)
	for {
		line, cut, err := b.ReadLine()
		if err != nil {
			return
		}
		use(strings.TrimRight(string(line), "\r"))
		for cut && err == nil { // what is over the limit is nobody's
			_, cut, err = b.ReadLine()
		}
	}
}
