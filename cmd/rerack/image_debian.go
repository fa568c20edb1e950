package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/imagebuild"
)

// debianEpoch is the time that files of an image say they are from unless SOURCE_DATE_EPOCH says otherwise: that of
// bookworm's first release.
const debianEpoch = 1686355200

func imageDebianCommand(g *global) *cobra.Command {
	d := imagebuild.Debian{}
	var output string
	c := &cobra.Command{Use: "debian", Short: "Make a minimal Debian that runs from memory; needs mmdebstrap", Args: cobra.NoArgs,
		Long: `Make a kernel and an initial RAM disk that holds a minimal Debian: its essential packages, those of --include, and a
first process that takes its address by DHCP, phones home, logs in to its iSCSI volumes and runs etc/rerack/start of
the --overlay. The same packages give the same bytes.`,
		Example: `  rerack image build debian --output web --include nginx-light --overlay web-files
  rerack image import web --kernel web/vmlinuz --initrd web/initrd.img --cmdline "console=ttyS0 quiet" --apply`,
		RunE: func(c *cobra.Command, _ []string) error {
			if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
				var err error
				if d.Epoch, err = strconv.ParseInt(s, 10, 64); err != nil {
					return &fault.Error{Kind: fault.Invalid, What: "SOURCE_DATE_EPOCH", Err: err}
				}
			}
			if d.Kernel == "" {
				d.Kernel = "linux-image-" + d.Arch
			}
			d.Log = c.ErrOrStderr()
			if err := d.Validate(); err != nil {
				return err
			}
			type built struct {
				Kernel string `json:"kernel"`
				Initrd string `json:"initrd"`
				Bytes  int64  `json:"bytes"`
			}
			out := built{Kernel: filepath.Join(output, "vmlinuz"), Initrd: filepath.Join(output, "initrd.img")}
			if err := os.MkdirAll(output, 0o755); err != nil {
				return &fault.Error{Kind: fault.Invalid, What: "--output", Err: err}
			}
			err := whole(out.Kernel, func(kernel io.Writer) error {
				return whole(out.Initrd, func(initrd io.Writer) error { return d.Build(c.Context(), kernel, initrd) })
			})
			if err != nil {
				return err
			}
			for _, f := range []string{out.Kernel, out.Initrd} {
				fi, err := os.Stat(f)
				if err != nil {
					return fault.Wrap(err, "see what was built", f)
				}
				out.Bytes += fi.Size()
			}
			return g.show(c.OutOrStdout(), out, func(w io.Writer) { fmt.Fprintf(w, "%s and %s, %s\n", out.Kernel, out.Initrd, sizeOf(out.Bytes)) })
		}}
	f := c.Flags()
	f.StringVar(&output, "output", "", "folder to write vmlinuz and initrd.img to")
	f.StringVar(&d.Suite, "suite", "bookworm", "release of Debian")
	f.StringVar(&d.Arch, "debian-arch", "amd64", "amd64 or arm64")
	f.StringVar(&d.Mirror, "mirror", "", "URL of a mirror (default: deb.debian.org with its security updates)")
	f.StringVar(&d.Kernel, "kernel-package", "", "kernel (default: linux-image-ARCH for hardware; linux-image-cloud-ARCH is smaller and for virtual machines)")
	f.StringSliceVar(&d.Include, "include", nil, "more packages")
	f.StringVar(&d.Overlay, "overlay", "", "folder laid over the system")
	d.Epoch = debianEpoch
	_ = c.MarkFlagRequired("output") // it is defined above
	return c
}

// whole writes a file that is there only when all of it is.
func whole(path string, write func(io.Writer) error) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return &fault.Error{Kind: fault.Invalid, What: "write " + path, Err: err}
	}
	defer os.Remove(tmp.Name()) // gone already when all went well
	err = write(tmp)
	if err == nil {
		err = tmp.Chmod(0o644)
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return fault.Wrap(os.Rename(tmp.Name(), path), "write", path)
}
