package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/api"
)

func captureCommand(g *global) *cobra.Command {
	c := &cobra.Command{Use: "capture", Short: "Copy local disks of machines into volumes", GroupID: "run"}
	c.AddCommand(captureStart(g), captureShow(g), captureWait(g), captureList(g), captureCancel(g))
	return c
}

func captureStart(g *global) *cobra.Command {
	var in struct {
		Disk     string `json:"disk"`
		Volume   string `json:"volume"`
		Image    string `json:"image,omitempty"`
		PowerOff bool   `json:"powerOff,omitempty"`
	}
	var wait bool
	var timeout time.Duration
	c := &cobra.Command{Use: "start MACHINE", Short: "Copy a local disk of a machine into a volume", Args: cobra.ExactArgs(1),
		Long: `Copy a local disk of a machine into a volume. The machine is booted over the network into an environment that
reads the disk and writes the volume; what was in the volume is lost. The copy is read back and compared. A
machine or server that goes away in between goes on where it was. At the end the machine is off, and the volume
is masked to nobody.`,
		Example: "  rerack capture start old-db --disk serial:S3Z8NB0K --to db1-root --power-off --wait\n  rerack capture start old-db --disk wwn:5000c500a1b2c3d4 --to db1-root",
		RunE: func(c *cobra.Command, args []string) error {
			if in.Disk == "" || in.Volume == "" {
				return &fault.Error{Kind: fault.Invalid, Where: c.CommandPath(), What: "it takes --disk and --to", Next: c.CommandPath() + " --help"}
			}
			cl, err := g.client()
			if err != nil {
				return err
			}
			var out api.StartResult
			if err := cl.call(c.Context(), http.MethodPost, "/machines/"+url.PathEscape(args[0])+"/capture", in, &out); err != nil {
				return err
			}
			if wait {
				return g.followCapture(c, cl, out.Run.ID, timeout)
			}
			return g.show(c.OutOrStdout(), out, func(w io.Writer) {
				verb := "started"
				if !out.Started {
					verb = "is under way already"
				}
				fmt.Fprintf(w, "run %s %s; watch it with: rerack capture wait %s\n", out.Run.ID, verb, out.Run.ID)
			})
		}}
	f := c.Flags()
	f.StringVar(&in.Disk, "disk", "", "which disk: wwn: and its world wide name, or serial: and its serial number")
	f.StringVar(&in.Volume, "to", "", "volume that gets the copy")
	f.StringVar(&in.Image, "image", "", "image of type capture (default: the only one)")
	f.BoolVar(&in.PowerOff, "power-off", false, "turn the machine off if it is on")
	f.BoolVar(&wait, "wait", false, "show progress until it ends")
	f.DurationVar(&timeout, "timeout", 7*24*time.Hour, "with --wait, give up watching after this long")
	return c
}

func captureShow(g *global) *cobra.Command {
	return &cobra.Command{Use: "show RUN", Short: "How far a capture has come", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			v, err := get[api.CaptureView](c.Context(), cl, "/captures/"+url.PathEscape(args[0]))
			if err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), v, func(w io.Writer) { printCapture(w, v) })
		}}
}

func captureList(g *global) *cobra.Command {
	return &cobra.Command{Use: "list", Short: "All captures", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			all, err := get[[]api.CaptureView](c.Context(), cl, "/captures")
			if err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), all, func(w io.Writer) {
				row(w, "RUN", "MACHINE", "DISK", "VOLUME", "STATE", "STAGE", "DONE", "SHA256")
				for _, v := range all {
					row(w, v.Run, v.Machine, v.Disk, v.Volume, v.State, dash(v.Stage), percent(v), dash(v.SHA256))
				}
			})
		}}
}

func captureWait(g *global) *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{Use: "wait RUN", Short: "Show progress until a capture ends", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			return g.followCapture(c, cl, args[0], timeout)
		}}
	c.Flags().DurationVar(&timeout, "timeout", 7*24*time.Hour, "give up watching after this long")
	return c
}

func captureCancel(g *global) *cobra.Command {
	return &cobra.Command{Use: "cancel RUN", Short: "End a capture: the machine is turned off and the volume taken from it", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			return cl.call(c.Context(), http.MethodPost, "/recoveries/"+url.PathEscape(args[0])+"/cancel", nil, nil)
		}}
}

// captureEvery is how often a capture is looked at: as often as its machine reports.
const captureEvery = time.Second

// followCapture shows a capture live and ends with the code that says how it ended. A server that restarts
// meanwhile is waited for.
func (g *global) followCapture(c *cobra.Command, cl *client, id string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(c.Context(), timeout)
	defer cancel()
	live, last := isTerminal(c.ErrOrStderr()), ""
	for {
		v, err := get[api.CaptureView](ctx, cl, "/captures/"+url.PathEscape(id))
		if err != nil && !fault.Is(err, fault.Unreachable) {
			return err
		}
		if line := captureLine(v); err == nil && line != last {
			last = line
			if live {
				fmt.Fprintf(c.ErrOrStderr(), "\r\x1b[K%s", line)
			} else {
				fmt.Fprintln(c.ErrOrStderr(), line)
			}
		}
		if err == nil && v.State.Ended() {
			if live {
				fmt.Fprintln(c.ErrOrStderr())
			}
			if err := g.show(c.OutOrStdout(), v, func(w io.Writer) { printCapture(w, v) }); err != nil {
				return err
			}
			return ended(v.State)
		}
		select {
		case <-ctx.Done():
			return &fault.Error{Kind: fault.Timeout, What: "capture " + id + " goes on", Next: "rerack capture wait " + id}
		case <-time.After(captureEvery):
		}
	}
}

// progress is one line on where a capture stands.
func captureLine(v api.CaptureView) string {
	if v.Size == 0 || v.State.Ended() {
		return fmt.Sprintf("%s: %s %s", v.Run, v.State, v.Phase)
	}
	return fmt.Sprintf("%s: %-6s %s %s of %s%s", v.Run, v.Stage, bar(int(v.Bytes*1000/v.Size), 1000, 30), sizeOf(v.Bytes), sizeOf(v.Size), again(v))
}

func again(v api.CaptureView) string {
	if v.Boots < 2 {
		return ""
	}
	return fmt.Sprintf(", boot %d", v.Boots)
}

func percent(v api.CaptureView) string {
	if v.Size == 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", v.Bytes*100/v.Size)
}

func printCapture(w io.Writer, v api.CaptureView) {
	fmt.Fprintf(w, "Capture %s: %s\n", v.Run, v.State)
	if v.Reason != "" {
		fmt.Fprintln(w, v.Reason)
	}
	row(w, "machine", v.Machine)
	row(w, "disk", v.Disk)
	row(w, "volume", v.Volume)
	row(w, "stage", dash(v.Stage))
	row(w, "bytes", fmt.Sprintf("%d of %d (%s)", v.Bytes, v.Size, percent(v)))
	row(w, "boots", fmt.Sprint(v.Boots))
	row(w, "sha256", dash(v.SHA256))
	if !v.Finished.IsZero() && !v.Began.IsZero() {
		row(w, "took", short(v.Finished.Sub(v.Began)))
	}
}
