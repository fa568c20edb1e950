package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/images"
)

// unheard is a sink for milestones: what it costs to keep them is not what is compared here.
type unheard struct{}

func (unheard) Reached(context.Context, pxe.Milestone) error { return nil }

// serveHTTP serves the files kernel and initrd/0 of a directory as a recovery does: out of the image
// store, to machines that each have an intent and a token. The first part of each machine's URLs goes to
// the file -list, one a line.
func serveHTTP(ctx context.Context, args []string) error {
	set := flag.NewFlagSet("http", flag.ExitOnError)
	addr := set.String("addr", "127.0.0.1:8080", "address")
	dir := set.String("root", "", "directory of the files")
	store := set.String("store", "", "directory of the image store")
	machines := set.Int("machines", 40, "with an intent")
	list := set.String("list", "", "file to write the machines' URLs to")
	_ = set.Parse(args) // it exits
	files, err := images.Open(*store, images.Options{})
	if err != nil {
		return err
	}
	defer files.Close()
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	table, err := pxe.NewTable(key)
	if err != nil {
		return err
	}
	boot := pxe.Boot{Kernel: &pxe.Kernel{}}
	if boot.Kernel.Kernel, err = keep(ctx, files, filepath.Join(*dir, "kernel")); err != nil {
		return err
	}
	initrd, err := keep(ctx, files, filepath.Join(*dir, "initrd", "0"))
	if err != nil {
		return err
	}
	boot.Kernel.Initrds = []pxe.Digest{initrd}
	var urls bytes.Buffer
	for i := range *machines {
		in := pxe.Intent{Machine: fmt.Sprintf("m%d", i), Run: "storm", Epoch: 1, Boot: &boot, Expires: time.Now().Add(time.Hour),
			NICs: []pxe.NIC{{MAC: pxe.MAC{0x52, 0x54, 0, 0, byte(i >> 8), byte(i)}, Address: netip.MustParsePrefix("10.0.0.1/8"), Lease: time.Hour}}}
		if err := table.Set(in); err != nil {
			return err
		}
		e, _ := table.Lookup(in.NICs[0].MAC)
		token := e.Token()
		fmt.Fprintf(&urls, "http://%s/boot/%s/\n", *addr, token.Reveal())
	}
	l, err := net.Listen("tcp4", *addr)
	if err != nil {
		return err
	}
	s, err := bootserver.New(bootserver.Config{Table: table, Images: files, BaseURL: "http://" + *addr, Sink: unheard{}, HTTPListener: l})
	if err != nil {
		return err
	}
	if err := os.WriteFile(*list, urls.Bytes(), 0o600); err != nil {
		return err
	}
	fmt.Println("ready")
	return s.Run(ctx)
}

// keep imports one file.
func keep(ctx context.Context, s *images.Store, name string) (pxe.Digest, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return s.Import(ctx, filepath.Base(name), f, "")
}
