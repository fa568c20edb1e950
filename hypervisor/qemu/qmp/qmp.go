// Package qmp speaks the QEMU Machine Protocol with one QEMU: JSON objects, one a line, as QEMU's
// docs/interop/qmp-spec.txt has it. What comes back is bounded, and believed only as far as it is asked
// for.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"rerack.dev/rerack/internal/fault"
)

// MaxMessage bounds one message of QEMU's, in bytes.
const MaxMessage = 1 << 20

// message is everything that QEMU sends. Exactly one of the first four says what it is.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *remote         `json:"error"`
	Event    string          `json:"event"`
	ID       uint64          `json:"id"`
}

type remote struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// parse reads one line.
func parse(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return m, &fault.Error{Kind: fault.Internal, What: "read what QEMU says", Err: err}
	}
	kinds := 0
	for _, is := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return m, &fault.Error{Kind: fault.Internal, What: "read what QEMU says", Evidence: fmt.Sprintf("%.100q is neither a greeting, a return, an error nor an event", line)}
	}
	return m, nil
}

// Client is a connection to one QEMU that takes commands. It is safe for concurrent use.
type Client struct {
	conn net.Conn
	done chan struct{} // closed when nothing is read any more

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan message
	err     error // why nothing is read any more
}

// New waits for QEMU's greeting on conn and makes it take commands. The connection is closed when there is
// an error.
func New(ctx context.Context, conn net.Conn) (*Client, error) {
	c := &Client{conn: conn, done: make(chan struct{}), waiting: map[uint64]chan message{}}
	greeted := make(chan struct{})
	go c.read(greeted)
	select {
	case <-greeted:
	case <-c.done:
		return nil, errors.Join(c.reason(), c.Close())
	case <-ctx.Done():
		return nil, errors.Join(fault.Wrap(ctx.Err(), "wait for QEMU's greeting", "QMP"), c.Close())
	}
	if err := c.Do(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// read takes what QEMU says until the connection ends.
func (c *Client) read(greeted chan<- struct{}) {
	s := bufio.NewScanner(c.conn)
	s.Buffer(nil, MaxMessage)
	err := func() error {
		first := true
		for s.Scan() {
			m, err := parse(s.Bytes())
			if err != nil {
				return err
			}
			switch {
			case first != (m.Greeting != nil):
				return fault.New(fault.Internal, "QEMU does not begin with a greeting, or greets twice")
			case first:
				first = false
				close(greeted)
			case m.Event == "":
				c.hand(m)
			}
		}
		return s.Err()
	}()
	if err == nil {
		err = io.EOF
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = &fault.Error{Kind: fault.Unreachable, What: "QMP", Evidence: "the connection to QEMU ended", Err: err}
	close(c.done)
}

// hand gives an answer to who waits for it. Nobody may: the call was given up.
func (c *Client) hand(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.waiting[m.ID]; w != nil {
		w <- m // has room for one
		delete(c.waiting, m.ID)
	}
}

func (c *Client) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Do has QEMU execute a command. out, unless nil, gets what it returns. When ctx ends before QEMU has
// answered, whether it has the command is unknown: fault.Timeout.
func (c *Client) Do(ctx context.Context, command string, args, out any) error {
	answer := make(chan message, 1)
	c.mu.Lock()
	c.next++
	id := c.next
	c.waiting[id] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return fault.Wrap(err, "QMP", command)
	}
	// A QEMU that hangs reads nothing: a write ends with the connection at the latest.
	sent := make(chan error, 1)
	go func() {
		_, err := c.conn.Write(append(b, '\n'))
		sent <- err
	}()
	for {
		select {
		case err := <-sent:
			if err != nil {
				return &fault.Error{Kind: fault.Unreachable, What: "QMP " + command, Err: err}
			}
			sent = nil
		case m := <-answer:
			return take(m, command, out)
		case <-c.done:
			return c.reason()
		case <-ctx.Done():
			return &fault.Error{Kind: fault.Timeout, What: "QMP " + command, Evidence: "no answer of QEMU's", Err: ctx.Err()}
		}
	}
}

func take(m message, command string, out any) error {
	if m.Error != nil {
		return &fault.Error{Kind: fault.Internal, What: "QMP " + command, Evidence: fmt.Sprintf("%.50s: %.500s", m.Error.Class, m.Error.Desc)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, out); err != nil {
		return &fault.Error{Kind: fault.Internal, What: "QMP " + command, Evidence: "not the answer expected", Err: err}
	}
	return nil
}

// Close ends the connection. QEMU runs on.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	return err
}
