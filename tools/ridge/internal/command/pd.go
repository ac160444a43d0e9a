package command

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/pd"
	"github.com/ridgekv/ridge/tools/ridge/internal/config"
	"github.com/ridgekv/ridge/tools/ridge/internal/serve"
	"github.com/ridgekv/ridge/tools/ridge/internal/telemetry"
)

var errPDNotReady = errors.New("knows no PD leader yet, or has no vote yet")

func newPD() *cobra.Command {
	schema := config.PD()
	cmd := &cobra.Command{
		Use:   "pd",
		Short: "Run a placement driver node, or look after those of a cluster",
		Long: `Run a placement driver node. One is enough to start with; three survive the loss of
one. A cluster begins with one, or with three that are given the same --members:

  ridge pd --member-id 1 --members 1=a:7400/a:7401,2=b:7400/b:7401,3=c:7400/c:7401

From then on its directory tells a node what it is, and --members counts no more.
Further nodes join the running ones, and get their ids from them:

  ridge pd --join a:7400 --listen d:7400 --raft-listen d:7401

"ridge pd list" lists all, "ridge pd remove" takes one out.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := load(cmd, schema)
			if err != nil {
				return err
			}
			return runPD(cmd, v)
		},
	}
	schema.AddFlags(cmd.Flags())
	cmd.AddCommand(newPDList(), newPDRemove())
	return cmd
}

func runPD(cmd *cobra.Command, v config.Values) error {
	files := tlsFiles(v)
	if err := secured(v, files, "listen", "raft.listen", "http.listen"); err != nil {
		return err
	}
	registry := telemetry.NewRegistry(Version)
	logger := newLogger(cmd, v)
	options, err := pdOptions(v)
	if err != nil {
		return err
	}
	options.Logger, options.Registerer = logger, registry
	clientTLS, err := files.Client()
	if err != nil {
		return usageError{err}
	}
	options.Peers = pdPeers{clientTLS}
	if files.Given() {
		options.TLS = &pd.TLSFiles{CA: files.CA, Cert: files.Cert, Key: files.Key}
	}
	server, err := pd.New(options)
	if err != nil {
		return usageError{err}
	}
	release, err := serve.Lock(options.Dir, "pd")
	if err != nil {
		return err
	}
	defer release()
	if err := serve.Probe("raft", "--raft-listen", v.String("raft.listen")); err != nil {
		return err
	}
	grpcListener, err := serve.Listen("grpc", "--listen", v.String("listen"))
	if err != nil {
		return err
	}
	defer grpcListener.Close()
	httpListener, err := serve.Listen("http", "--http-listen", v.String("http.listen"))
	if err != nil {
		return err
	}
	defer httpListener.Close()
	setMemory(v.Int("memory"))
	fmt.Fprintf(cmd.OutOrStdout(), "pd: grpc %s, raft %s, http %s, data in %s\n",
		grpcListener.Addr(), options.RaftListenAddress, httpListener.Addr(), options.Dir)
	p := process{
		members: []member{{
			name: "pd", node: server, listener: grpcListener, registry: registry,
			readiness: pdReadiness(server),
		}},
		tls: files, logger: logger, registry: registry, http: httpListener,
		insecure: v.Bool("insecure"),
		announce: func(context.Context) error {
			return printReady(cmd.OutOrStdout(), fmt.Sprintf("pd %d", server.MemberID()))
		},
	}
	return p.run(cmd.Context())
}

func pdReadiness(s *pd.Server) func() error {
	return func() error {
		if s.Ready() {
			return nil
		}
		return errPDNotReady
	}
}

// placement fills in the settings that `ridge pd` and `ridge dev` share.
func placement(o *pd.Options, v config.Values) {
	o.LocationLabels = v.Strings("location_labels")
	o.StoreMoves, o.LeaderTransfers = int(v.Int("store_moves")), int(v.Int("leader_transfers"))
	o.ImageBytesPerSecond = uint64(v.Int("image_rate"))
	o.HighWaterPercent = int(v.Int("high_water"))
	o.TolerancePercent = int(v.Int("balance_tolerance"))
	o.SplitLoadOps = uint64(v.Int("split_load"))
}

func pdOptions(v config.Values) (pd.Options, error) {
	o := pd.Options{
		Dir: v.String("dir"), MemberID: uint64(v.Int("member_id")),
		RaftListenAddress: v.String("raft.listen"), Insecure: v.Bool("insecure"),
		Replicas: int(v.Int("replicas")), SplitSizeBytes: uint64(v.Int("split_size")),
		StoreHeartbeat: v.Duration("store_heartbeat"), StoreDownAfter: v.Duration("store_down_after"),
		Retention: v.Duration("retention"), Version: Version,
	}
	placement(&o, v)
	o.Join = v.Strings("join")
	if !v.Given("members") {
		o.Members = []pd.Member{{
			ID:          o.MemberID,
			GRPCAddress: advertised(v, "advertise", v.String("listen")),
			RaftAddress: advertised(v, "raft.advertise", v.String("raft.listen")),
		}}
		return o, nil
	}
	var faults []error
	if len(o.Join) > 0 {
		faults = append(faults, errors.New("members: a node that joins learns them from those it joins"))
	}
	if o.MemberID == 0 {
		o.MemberID = 1
	}
	for _, text := range v.Strings("members") {
		m, err := parseMember(text)
		if err != nil {
			faults = append(faults, err)
		}
		o.Members = append(o.Members, m)
	}
	if len(faults) > 0 {
		return o, config.Error{Faults: faults}
	}
	return o, nil
}

// parseMember reads ID=GRPC_ADDRESS/RAFT_ADDRESS.
func parseMember(text string) (pd.Member, error) {
	number, addresses, hasID := strings.Cut(text, "=")
	grpcAddress, raftAddress, hasRaft := strings.Cut(addresses, "/")
	n, err := strconv.ParseUint(number, 10, 64)
	if !hasID || !hasRaft || err != nil {
		return pd.Member{}, fmt.Errorf("members: %q is not ID=GRPC_ADDRESS/RAFT_ADDRESS", text)
	}
	return pd.Member{ID: n, GRPCAddress: grpcAddress, RaftAddress: raftAddress}, nil
}
