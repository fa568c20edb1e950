package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pid1"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/capture"
	"rerack.dev/rerack/sanzoning/iscsi"
)

const (
	// disksWithin is how long disks may take to show up: some controllers spin them up one after another.
	disksWithin = time.Minute
	dialWithin  = 10 * time.Second
	// exchangeWithin bounds one exchange with the array.
	exchangeWithin = 30 * time.Second
)

func captureCommand(log *slog.Logger) *cobra.Command {
	return &cobra.Command{
		Use:   "capture",
		Short: "Copy one local disk into a volume",
		Long: "Takes an address, says to the boot plane that this machine runs, asks it which disk to copy to which volume, and copies. " +
			"The disk is opened for reading only.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return captureDisk(c.Context(), log) },
	}
}

func captureDisk(ctx context.Context, log *slog.Logger) error {
	params, err := pid1.Cmdline()
	if err != nil {
		return err
	}
	home, err := newHome(params)
	if err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, addressWithin)
	defer cancel()
	lease, err := pid1.Network(within, log)
	if err != nil {
		return err
	}
	log.Info("address", "interface", lease.Interface, "address", lease.Address)
	go lease.Keep(ctx, log)
	if err := home.PhoneHome(ctx, ""); err != nil {
		return err
	}
	orders, err := bootclient.Orders(ctx, home.client, home.url, home.nonce)
	if err != nil {
		return err
	}
	log.Info("orders", "do", orders, "stage", orders.Stage, "from", orders.Next)
	ledger := func(ctx context.Context, r capture.Report) (capture.State, error) {
		s, err := bootclient.ReportCapture(ctx, home.client, home.url, home.nonce, r)
		log.Info("capture", "stage", s.Stage, "chunk", s.Next, "of", capture.Chunks(r.Size, orders.ChunkBytes))
		return s, err
	}
	err = copyDisk(ctx, orders, ledger, log)
	switch fault.KindOf(err) {
	case fault.Unreachable, fault.Timeout, fault.Busy:
		return err // another boot goes on from here
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), told)
	defer cancel()
	if _, err := ledger(late, capture.Report{Stage: capture.Copy, Failure: capture.NewFailure(err)}); err != nil {
		log.Warn("report the failure", "err", err)
	}
	return err
}

func copyDisk(ctx context.Context, o capture.Orders, ledger capture.Ledger, log *slog.Logger) error {
	want, err := capture.ParseDisk(o.Disk)
	if err != nil {
		return err
	}
	d, err := awaitDisk(ctx, want)
	if err != nil {
		return err
	}
	path := filepath.Join("/dev", d.Name)
	f, err := os.Open(path) // for reading only
	if err != nil {
		return fault.Wrap(err, "open", "disk "+d.String())
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fault.Wrap(err, "read its size", "disk "+d.String())
	}
	log.Info("disk", "is", d, "bytes", size)
	return capture.Run(ctx, capture.Config{Orders: o, Source: disk{f, size}, Ledger: ledger, Logger: log,
		Open: func(ctx context.Context) (capture.Target, error) { return openVolume(ctx, o) }})
}

// awaitDisk waits for the disk to show up. Two that match are an error at once.
func awaitDisk(ctx context.Context, want capture.Disk) (capture.LocalDisk, error) {
	ctx, cancel := context.WithTimeout(ctx, disksWithin)
	defer cancel()
	for {
		d, err := capture.Find("/sys", want)
		if !fault.Is(err, fault.NotFound) {
			return d, err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return d, err
		}
	}
}

// disk implements capture.Source.
type disk struct {
	*os.File
	size int64
}

func (d disk) Size() int64 { return d.size }

// openVolume logs in to the volume over the first portal that lets us.
func openVolume(ctx context.Context, o capture.Orders) (capture.Target, error) {
	var last error
	for _, portal := range o.Portals {
		s, err := login(ctx, o, portal)
		if err != nil {
			last = err
			continue
		}
		v := &volume{session: s, lun: o.LUN}
		blocks, size, err := s.Capacity(ctx, o.LUN)
		if err != nil {
			_ = s.Close()
			return nil, err
		}
		v.size = int64(min(blocks, capture.MaxSize/uint64(size))) * int64(size)
		return v, nil
	}
	return nil, last
}

func login(ctx context.Context, o capture.Orders, portal string) (*iscsi.Session, error) {
	d := net.Dialer{Timeout: dialWithin}
	// The array knows the machine by an address that is often not the one it booted with.
	if from, err := netip.ParseAddr(o.Source); err == nil && own(from) {
		d.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
	}
	conn, err := d.DialContext(ctx, "tcp", portal)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Unreachable, Where: "portal " + portal, What: "connect", Err: err}
	}
	s, err := iscsi.Login(ctx, conn, iscsi.Params{Initiator: o.Initiator, Target: o.Target, Timeout: exchangeWithin,
		Account: iscsi.Account{User: o.User, Secret: o.Secret}})
	if fault.Is(err, fault.NotFound) {
		// It may be masked for a moment, while the array is told of us.
		err = &fault.Error{Kind: fault.Busy, Err: err}
	}
	return s, err
}

// own reports whether the machine has an address.
func own(a netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(addrs, func(x net.Addr) bool {
		n, ok := x.(*net.IPNet)
		return ok && n.IP.Equal(a.AsSlice())
	})
}

// volume implements capture.Target.
type volume struct {
	session *iscsi.Session
	lun     uint16
	size    int64
}

func (v *volume) Size() int64 { return v.size }

func (v *volume) ReadAt(ctx context.Context, p []byte, off int64) error {
	return v.session.ReadAt(ctx, v.lun, p, off)
}

func (v *volume) WriteAt(ctx context.Context, p []byte, off int64) error {
	return v.session.WriteAt(ctx, v.lun, p, off)
}

func (v *volume) Sync(ctx context.Context) error { return v.session.Sync(ctx, v.lun) }

// Close logs out if the target still answers.
func (v *volume) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), dialWithin)
	defer cancel()
	return v.session.Logout(ctx)
}
