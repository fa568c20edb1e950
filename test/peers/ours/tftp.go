package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/tftp"
)

// served is an open file as the server wants it.
type served struct {
	*os.File
	size int64
}

func (s served) Size() int64 { return s.size }

func serveTFTP(ctx context.Context, args []string) error {
	set := flag.NewFlagSet("tftp", flag.ExitOnError)
	addr := set.String("addr", "127.0.0.1:69", "address")
	dir := set.String("root", "", "directory of the files")
	perSource := set.Int("per-source", 1000, "transfers at once to one address")
	_ = set.Parse(args) // it exits
	root, err := os.OpenRoot(*dir)
	if err != nil {
		return err
	}
	defer root.Close()
	conn, err := net.ListenPacket("udp4", *addr)
	if err != nil {
		return err
	}
	s, err := tftp.New(tftp.Config{Conn: conn, PerSource: *perSource, Files: func(name string, _ netip.AddrPort) (tftp.File, error) {
		f, err := root.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.NotFound, "no such file")
		}
		if err != nil {
			return nil, err
		}
		st, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return served{f, st.Size()}, nil
	}})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	err = s.Run(ctx)
	fmt.Printf("%+v\n", s.Stats())
	return err
}

// fetch loads a TFTP server with fetches of one file and prints the throughput. Sizes are checked by
// the client against what the server announced, and here against each other.
func fetch(ctx context.Context, args []string) error {
	set := flag.NewFlagSet("fetch", flag.ExitOnError)
	addr := set.String("server", "127.0.0.1:69", "address")
	name := set.String("file", "", "name of the file")
	size := set.Int64("size", 1<<20, "its size in bytes")
	block := set.Int("block", 1468, "blksize asked for")
	window := set.Int("window", 1, "windowsize asked for")
	clients := set.Int("clients", 1, "at once")
	count := set.Int("n", 1, "fetches in all")
	_ = set.Parse(args) // it exits
	to, err := netip.ParseAddrPort(*addr)
	if err != nil {
		return err
	}
	granted := 0
	spy := tftp.Client{Block: *block, Window: *window, ListenPacket: func(network, address string) (net.PacketConn, error) {
		c, err := net.ListenPacket(network, address)
		return &spied{PacketConn: c, window: &granted}, err
	}}
	if n, err := spy.Get(ctx, to, *name, io.Discard); err != nil || n != *size {
		return fmt.Errorf("first fetch: %d bytes, %w", n, err)
	}
	var (
		mu            sync.Mutex
		failed, first = 0, error(nil)
		c             = tftp.Client{Block: *block, Window: *window}
		g             errgroup.Group
		begin         = time.Now()
	)
	g.SetLimit(*clients)
	for range *count {
		g.Go(func() error {
			n, err := c.Get(ctx, to, *name, io.Discard)
			if err == nil && n != *size {
				err = fmt.Errorf("%d bytes", n)
			}
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed, first = failed+1, errors.Join(first, err)
			}
			return nil
		})
	}
	_ = g.Wait() // failures are counted
	mbps := float64(*count-failed) * float64(*size) / time.Since(begin).Seconds() / 1e6
	fmt.Printf("mb_s=%.1f failed=%d granted=%d\n", mbps, failed, max(granted, 1))
	return first
}

// spied is a client's socket that notes the windowsize of the server's OACK (RFC 2347, RFC 7440).
type spied struct {
	net.PacketConn
	window *int
}

func (s *spied) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := s.PacketConn.ReadFrom(b)
	if err == nil && n > 2 && b[1] == 6 {
		*s.window = windowOf(string(b[2:n]))
	}
	return n, from, err
}

// windowOf finds the windowsize in the options of an OACK; 0 when it is not there.
func windowOf(options string) int {
	f := strings.Split(options, "\x00")
	for i := 0; i+1 < len(f); i += 2 {
		if strings.EqualFold(f[i], "windowsize") {
			v, _ := strconv.Atoi(f[i+1]) // not a number is not granted
			return v
		}
	}
	return 0
}
